"""From the arguments of a façade to a Request: pure. Every argument has an effect, or is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec
from msgspec.structs import replace

from omnibus.errors import InvalidRequest
from omnibus.pipeline.engines import engine_kind
from omnibus.pipeline.routing import plan_route, with_ancestors
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.wire.request import Message, Request, Segment, checked
from omnibus.wire.sampling import FIELDS

Prompt = str | Sequence[int] | Mapping[str, Any] | Request
"""A text; token ids of the first stage; `{"prompt": …}`, `{"prompt_token_ids": …}` or `{"messages": …}`, with any further
field of a Request, and `negative_prompt` for the stages that paint; or a Request."""
_FINALS = "final_output_stage_ids"


class NamedAdapter(Protocol):
    """A LoRA request of vLLM: the name counts, the stage's `lora_modules` say where it is."""

    lora_name: str


def make_request(  # noqa: PLR0913 vLLM's arguments
    spec: PipelineSpec,
    prompt: Prompt,
    *,
    sampling_params_list: Sequence[Any] | None = None,
    modalities: Sequence[str] | None = None,
    final_stage_id: int | None = None,
    final_output_stage_ids: Sequence[int] | None = None,
    lora_request: str | NamedAdapter | None = None,
    trace_headers: Mapping[str, str] | None = None,
    priority: int = 0,
    data_parallel_rank: int | None = None,
    resumable: bool = False,
    deadline: float | None = None,
) -> Request:
    """The request to submit; raises InvalidRequest naming the argument that cannot have an effect, or is of a wrong type.

    `sampling_params_list` has one entry a stage, in their order: a mapping, a SamplingParams, or None for its defaults.
    """
    if data_parallel_rank is not None:
        raise InvalidRequest("replicas are chosen by the broker: there are no ranks", param="data_parallel_rank")
    wanted = _modalities(spec, modalities, final_stage_id, final_output_stage_ids)
    changes = {
        "sampling_params": None if sampling_params_list is None else _sampling(spec, sampling_params_list),
        "modalities": wanted,
        "lora": None if lora_request is None else _lora(spec, lora_request),
        "trace": None if trace_headers is None else dict(trace_headers),
        "deadline": deadline,
        "priority": priority or None,
        "lane": spec.lane_of(priority) if priority > 0 else None,
        "resumable": resumable or None,
    }
    negative = prompt.get("negative_prompt") if isinstance(prompt, Mapping) else None
    if isinstance(prompt, Mapping):
        prompt = {name: value for name, value in prompt.items() if name != "negative_prompt"}
    request = replace(as_request(prompt), **{name: value for name, value in changes.items() if value is not None})
    return checked(request if negative is None else _guided(spec, request, negative))


def as_request(prompt: Prompt) -> Request:
    """A prompt in any of its forms; raises InvalidRequest."""
    if isinstance(prompt, Request):
        return prompt
    if isinstance(prompt, str):
        return Request(prompt=prompt)
    if isinstance(prompt, Mapping):
        return _from_mapping(prompt)
    try:
        return Request(prompt=msgspec.convert(list(prompt), tuple[int, ...]))
    except (TypeError, msgspec.ValidationError) as error:
        raise InvalidRequest(
            f"a prompt is a text, token ids, a mapping or a Request: {error}", param="prompt"
        ) from error


def _guided(spec: PipelineSpec, request: Request, negative: Any) -> Request:
    """The request with a negative prompt for each stage that paints."""
    painters = [stage.name for stage in spec.stages if _paints(stage)]
    if not painters:
        engines = ", ".join(dict.fromkeys(stage.engine for stage in spec.stages))
        raise InvalidRequest(f"no stage paints: the engines are {engines}", param="negative_prompt")
    params = request.sampling_params
    guided = {name: {**params.get(name, {}), "negative_prompt": negative} for name in painters}
    return replace(request, sampling_params={**params, **guided})


def _paints(stage: StageSpec) -> bool:
    kind = engine_kind(stage.engine)
    return "image" in kind.parameters and "image" in (kind.gives or stage.final_types)


def segment_of(prompt: Prompt, *, end: bool = False) -> Segment:
    """A prompt as a further segment of an open input; raises InvalidRequest for what only a request can have."""
    request = as_request(prompt)
    if replace(request, prompt=None, messages=None) != Request():
        raise InvalidRequest("a further segment has a prompt or messages, and nothing else", param="prompt")
    return Segment(prompt=request.prompt, messages=request.messages, end=end)


def text_of(request: Request) -> str | None:
    """The text of a request's prompt; None when it is token ids."""
    return None if isinstance(request.prompt, tuple) else request.text()


def _from_mapping(prompt: Mapping[str, Any]) -> Request:
    fields = dict(prompt)
    if "prompt_token_ids" in fields:
        fields["prompt"] = tuple(fields.pop("prompt_token_ids"))
    unknown = sorted(fields.keys() - set(Request.__struct_fields__))
    if unknown:
        raise InvalidRequest(f"a prompt has no field {unknown[0]!r}", param=unknown[0])
    try:
        fields["messages"] = msgspec.convert(fields.get("messages"), tuple[Message, ...] | None)
        return msgspec.convert(fields, Request)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"prompt: {error}", param="prompt") from error


def _sampling(spec: PipelineSpec, given: Sequence[Any]) -> dict[str, dict[str, Any]]:
    if isinstance(given, str | Mapping) or len(given) != len(spec.stages):
        names = ", ".join(stage.name for stage in spec.stages)
        raise InvalidRequest(
            f"sampling_params_list has one entry a stage, {len(spec.stages)} for {names}", param="sampling_params_list"
        )
    pairs = zip(spec.stages, given, strict=True)
    return {stage.name: _as_mapping(stage, params) for stage, params in pairs if params is not None}


def _as_mapping(stage: StageSpec, params: Any) -> dict[str, Any]:
    """All that a SamplingParams says: it replaces the stage's defaults, also where it has vLLM's own.

    A field that stages do not take goes along when it was set, to be refused by name.
    """
    if isinstance(params, Mapping):
        return dict(params)
    if not isinstance(params, msgspec.Struct):
        message = f"sampling parameters of stage {stage.name!r} are a mapping or a SamplingParams"
        raise InvalidRequest(message, param="sampling_params_list")
    default = type(params)()
    values = {name: getattr(params, name) for name in params.__struct_fields__ if not name.startswith("_")}
    return {name: value for name, value in values.items() if name in FIELDS or value != getattr(default, name)}


def _modalities(
    spec: PipelineSpec, named: Sequence[str] | None, last: int | None, given: Sequence[int] | None
) -> tuple[str, ...] | None:
    """The modalities that were named, or those of the final stages that were asked for."""
    if isinstance(named, str):
        raise InvalidRequest(f"modalities are a list, such as [{named!r}]", param="modalities")
    if last is None and given is None:
        return None if named is None else tuple(named)
    if named is not None:
        raise InvalidRequest("name modalities or final stages, not both", param="modalities")
    wanted = _wanted_stages(spec, last, given)
    types = dict.fromkeys(one for stage in spec.stages if stage.stage_id in wanted for one in stage.final_types)
    brought = {stage.stage_id for stage in plan_route(spec, tuple(types)).finals}
    if brought != wanted:
        twins = ", ".join(map(str, sorted(brought - wanted)))
        raise InvalidRequest(f"stage {twins} delivers the same modality and cannot be left out", param=_FINALS)
    return tuple(types)


def _wanted_stages(spec: PipelineSpec, last: int | None, given: Sequence[int] | None) -> set[int]:
    """The final stages that were named; with `last` alone, it and every final stage that it needs."""
    finals = {stage.stage_id for stage in spec.stages if stage.final_output}
    for name, ids in (("final_stage_id", [] if last is None else [last]), (_FINALS, given or [])):
        for stage_id in ids:
            if stage_id not in finals:
                raise InvalidRequest(f"stage {stage_id!r} delivers nothing; {sorted(finals)} do", param=name)
    reachable = finals if last is None else finals & with_ancestors(spec, {last})
    if given is None:
        return reachable
    beyond = set(given) - reachable
    if beyond or not given:
        raise InvalidRequest(f"stages {sorted(beyond)} do not lead to stage {last}", param=_FINALS)
    return set(given)


def _lora(spec: PipelineSpec, adapter: str | NamedAdapter) -> str:
    name = adapter if isinstance(adapter, str) else adapter.lora_name
    known = spec.adapters
    if name not in known:
        listed = ", ".join(known) or "none"
        raise InvalidRequest(f"no stage has a LoRA adapter {name!r}; there are: {listed}", param="lora_request")
    return name
