"""Checks of a request against its pipeline: what none of its stages can serve is refused before anything is queued. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec.structs import asdict

from omnibus.errors import EmptyPrompt, InvalidRequest, RequestTooLarge
from omnibus.pipeline.engines import ModelKind, engine_kind
from omnibus.pipeline.policies import LoadBalancingPolicy
from omnibus.pipeline.route import Route
from omnibus.pipeline.routing import plan_route
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.pipeline.validation import cannot_listen
from omnibus.requests.chat_checks import STRUCTURED, check_options, check_structured
from omnibus.wire.names import check_name
from omnibus.wire.request import Message, Request, Segment, TextPart, media_parts

MIN_DEADLINE = 0.001
"""Shortest deadline that a request may ask for, seconds."""
NUMBER_BYTES = 4
"""Bytes that a number counts for in `max_prompt_bytes`: about what a token's text has."""
UNCOUNTED = frozenset({"v", "stream", "deadline", "lane", "priority", "tenant", "trace", "fingerprint", "resumable"})
"""Fields of a request that have a bound of their own."""
_COUNTED = tuple(name for name in Request.__struct_fields__ if name not in UNCOUNTED)
MAX_TRACE_BYTES = 8 * 1024
"""Largest trace context that a request may bring, encoded."""
MAX_TENANT = 256
"""Characters of a tenant's name."""


def validate(spec: PipelineSpec, request: Request) -> Route:
    """The route of a request; raises a RequestError that names the field when the pipeline cannot serve it."""
    _check_prompt(spec, request)
    if request.modalities is not None and not request.modalities:
        raise InvalidRequest("modalities is empty; leave it out for the usual outputs", param="modalities")
    if request.lane not in spec.lanes:
        raise InvalidRequest(
            f"pipeline {spec.name!r} has no lane {request.lane!r}; it has {', '.join(spec.lanes)}", param="lane"
        )
    if len(request.tenant) > MAX_TENANT:  # it is part of every record
        raise RequestTooLarge(f"tenant may have {MAX_TENANT} characters", param="tenant")
    if len(msgspec.msgpack.encode(request.trace)) > MAX_TRACE_BYTES:  # it travels in every envelope
        raise RequestTooLarge(f"trace may have {MAX_TRACE_BYTES} bytes", param="trace")
    if request.deadline is not None and not request.deadline >= MIN_DEADLINE:
        raise InvalidRequest(f"deadline must be at least {MIN_DEADLINE} s", param="deadline")
    for name in request.sampling_params:
        if name not in spec.by_ref:
            raise InvalidRequest(f"no stage {name!r} in pipeline {spec.name!r}", param=f"sampling_params.{name}")
    route = plan_route(spec, request.modalities)
    _check_effects(spec, request, route)
    if request.resumable:
        _check_open_input(spec, route)
    return route


def check_segment(spec: PipelineSpec, route: Route, segment: Segment) -> None:
    """Raises a RequestError that names the field when a segment is none that the pipeline can serve."""
    if segment.is_empty:
        if not segment.end:
            raise InvalidRequest("give exactly one of prompt and messages, or end the input", param="prompt")
        return
    request = segment.as_request()
    _check_prompt(spec, request)
    stages = [spec.stage(stage.stage_id) for stage in route.stages if not stage.sources]
    _check_turns(request.messages or (), stages, ", ".join(stage.engine for stage in stages))


def _check_open_input(spec: PipelineSpec, route: Route) -> None:
    for stage in (spec.stage(one.stage_id) for one in route.stages if not one.sources):
        if (why := cannot_listen(stage)) is not None:
            raise InvalidRequest(f"stage {stage.name!r} {why}; send the whole prompt", param="resumable")
    if spec.input_timeout is None:
        what = f"pipeline {spec.name!r} takes no open input: give it an input_timeout, or send the whole prompt"
        raise InvalidRequest(what, param="resumable")


def _check_prompt(spec: PipelineSpec, request: Request) -> None:
    if (request.prompt is None) == (request.messages is None):
        raise InvalidRequest("give exactly one of prompt and messages", param="prompt")
    if request.prompt is not None and not request.prompt:
        raise EmptyPrompt(param="prompt")
    if isinstance(request.prompt, str) and not request.prompt.strip():
        raise EmptyPrompt(param="prompt")
    if request.messages is not None and not any(_says_something(message) for message in request.messages):
        raise EmptyPrompt("The messages are empty.", param="messages")
    check_size(spec, request)


def check_size(spec: PipelineSpec, request: Request) -> None:
    """Raises RequestTooLarge, naming the largest field, for more text than the pipeline takes; files are bounded elsewhere."""
    counted = {name: _bytes_of(value) for name in _COUNTED if (value := getattr(request, name))}
    if (size := sum(counted.values())) > spec.max_prompt_bytes:
        largest = max(counted, key=counted.__getitem__)
        raise RequestTooLarge(
            f"texts, ids and parameters have {size} bytes; {spec.name!r} accepts {spec.max_prompt_bytes}", param=largest
        )


def _bytes_of(value: object) -> int:
    """Bytes of all texts and numbers inside a value, files left out."""
    match value:
        case str():
            return len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))
        case bytes() | None:
            return 0
        case dict():
            return sum(_bytes_of(name) + _bytes_of(inner) for name, inner in value.items())
        case (int(), *_) if isinstance(value, tuple):  # token ids: nothing else of a request is such a tuple
            return NUMBER_BYTES * len(value)
        case list() | tuple():
            return sum(map(_bytes_of, value))
        case msgspec.Struct():
            return sum(map(_bytes_of, asdict(value).values()))
        case _:
            return NUMBER_BYTES


def _check_effects(spec: PipelineSpec, request: Request, route: Route) -> None:
    """Refuse what none of the stages that would run does anything with."""
    stages = [spec.stage(stage_id) for stage_id in route.stage_ids]
    if request.affinity is not None:
        check_name(request.affinity, "affinity")
        if not any(LoadBalancingPolicy(stage.lb_policy).directed for stage in stages):
            raise InvalidRequest(
                f"affinity has no effect in pipeline {spec.name!r}: under the policy `broker` the first free replica "
                "takes a task; give a stage another lb_policy",
                param="affinity",
            )
    if request.priority and not (_waits(request) or any(_schedules(stage) for stage in stages)):
        raise InvalidRequest(
            f"priority has no effect in pipeline {spec.name!r}: it needs a vLLM stage with `scheduling_policy: priority`, or "
            "for one above 0 the lane `batch`",
            param="priority",
        )
    engines = ", ".join(dict.fromkeys(stage.engine for stage in stages))
    if request.mm_processor_kwargs and not any(engine_kind(stage.engine).has_media_processor for stage in stages):
        raise InvalidRequest(f"no stage has a media processor: the engines are {engines}", param="mm_processor_kwargs")
    if request.lora is not None:
        _check_adapter(request.lora, stages)
    _check_turns(request.messages or (), stages, engines)
    check_options(request, stages, engines)
    for params in request.sampling_params.values():
        check_structured(params.get(STRUCTURED))


def _check_adapter(name: str, stages: Sequence[StageSpec]) -> None:
    adapters = sorted({name for stage in stages for name in stage.adapters})
    if name not in adapters:
        known = ", ".join(adapters) or "none"
        raise InvalidRequest(f"no stage has a LoRA adapter {name!r}; there are: {known}", param="lora")


def _waits(request: Request) -> bool:
    """Whether its lane does what its priority asks for."""
    return request.priority > 0 and request.lane == "batch"


def _schedules(stage: StageSpec) -> bool:
    return stage.engine_args.get("scheduling_policy") == "priority"


def _check_turns(messages: Sequence[Message], stages: Sequence[StageSpec], engines: str) -> None:
    """Refuse what a chat holds beside its texts where no stage could show it to a model."""
    for where, _ in media_parts(messages):
        kind = where.rpartition(".")[-1]
        if not any(_sees(stage, kind) for stage in stages if _sees_request(stage)):
            raise InvalidRequest(f"no stage takes {kind}: the engines are {engines}", param=where)
    for index, message in enumerate(messages):
        beside = next(
            (name for name in ("tool_calls", "tool_call_id", "name", "reasoning") if getattr(message, name)), None
        )
        if beside is not None and not any(_shows_turns(stage) for stage in stages):
            raise InvalidRequest(
                f"no stage has a chat template that shows {beside} to a model: the engines are {engines}",
                param=f"messages[{index}].{beside}",
            )


def _sees_request(stage: StageSpec) -> bool:
    """Whether a stage can be given a request's files: a model behind others has their outputs alone, without a processor."""
    is_alone = not stage.input_sources or engine_kind(stage.engine).model is not ModelKind.CHECKPOINT
    return is_alone or stage.input_processor is not None


def _sees(stage: StageSpec, kind: str) -> bool:
    """Whether a stage takes files of a kind; an input processor may read all of a request."""
    return stage.input_processor is not None or kind in engine_kind(stage.engine).media_of(stage.engine_args)


def _shows_turns(stage: StageSpec) -> bool:
    """The same of what a chat holds beside its texts."""
    return stage.input_processor is not None or engine_kind(stage.engine).has_chat_template


def _says_something(message: Message) -> bool:
    if isinstance(message.content, str):
        return bool(message.content.strip() or message.tool_calls)
    return any(not isinstance(part, TextPart) or part.text.strip() for part in message.content)
