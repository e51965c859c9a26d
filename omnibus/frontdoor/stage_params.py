"""Which stage gets which of a caller's parameters.

HTTP names parameters of a request, a pipeline has them by stage. Parameters of text and of its tokens go to the stages that
deliver text (to the first stages where none does), parameters of images to the stages that paint, those of videos to the
stages that deliver them, the seed to every stage that draws random numbers; and only engines that know them get them. What
the caller sets by stage is passed on as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from omnibus.errors import InvalidRequest, PipelineError
from omnibus.pipeline.engines import engine_kind
from omnibus.pipeline.route import Route
from omnibus.pipeline.routing import plan_route
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.wire.sampling import OF_TOKENS

_NO_CHANGE: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(("temperature", "top_p", "repetition_penalty", "n"), (1,)),
    **dict.fromkeys(("min_p", "presence_penalty", "frequency_penalty", "min_tokens"), (0,)),
    **dict.fromkeys(("stop", "stop_token_ids", "logit_bias", "negative_prompt"), ("", [], {})),
    "top_k": (0, -1),
    **dict.fromkeys(("ignore_eos", "include_stop_str_in_output"), (False,)),
    **dict.fromkeys(("skip_special_tokens", "spaces_between_special_tokens"), (True,)),
    "bad_words": ([],),
}
"""Values that ask for what happens anyway, and need nobody to read them."""
StageParams = dict[str, dict[str, Any]]
"""Parameters by stage name."""


def stage_params(
    spec: PipelineSpec,
    modalities: tuple[str, ...] | None,
    *,
    text: Mapping[str, Any] | None = None,
    image: Mapping[str, Any] | None = None,
    video: Mapping[str, Any] | None = None,
    seed: int | None = None,
) -> StageParams:
    """Spread a caller's parameters over the stages that will run.

    Raises as `plan_route` for wrong modalities, InvalidRequest for a parameter that no stage would read.
    """
    route = plan_route(spec, modalities)
    running = [spec.stage(stage.stage_id) for stage in route.stages]
    params: StageParams = {}
    for choose, values in (
        (partial(_text_stages, "text"), {name: one for name, one in (text or {}).items() if name not in OF_TOKENS}),
        (partial(_text_stages, "tokens"), {name: one for name, one in (text or {}).items() if name in OF_TOKENS}),
        (_image_stages, image or {}),
        (_video_stages, video or {}),
        (_seeded_stages, {} if seed is None else {"seed": seed}),
    ):
        if not values:
            continue
        stages = choose(running, route)
        asking = (name for name, value in values.items() if value not in _NO_CHANGE.get(name, ()))
        unread = next((name for name in asking if name != "previews"), None)  # at most so many: none will do
        if unread is not None and not stages:
            engines = ", ".join(dict.fromkeys(stage.engine for stage in running))
            raise InvalidRequest(
                f"{unread} has no effect here: no stage reads it, the engines are {engines}; what a function knows by this "
                "name goes into sampling_params, by stage",
                param=unread,
            )
        _give(params, stages, values)
    return params


def overridden(
    spec: PipelineSpec,
    params: StageParams,
    by_stage: Mapping[str, Mapping[str, Any]] | None,
    in_order: Sequence[Mapping[str, Any] | None] | None,
) -> StageParams:
    """`params` with what the caller set by stage on top: the list first, then the names or ids.

    Raises InvalidRequest for a stage that the pipeline does not have.
    """
    merged = {name: dict(values) for name, values in params.items()}
    if in_order is not None and len(in_order) > len(spec.stages):
        message = f"pipeline {spec.name!r} has {len(spec.stages)} stages, not {len(in_order)}"
        raise InvalidRequest(message, param="sampling_params_list")
    for stage, values in zip(spec.stages, in_order or (), strict=False):
        _give(merged, [stage], values or {})
    for ref, values in (by_stage or {}).items():
        _give(merged, [_stage(spec, ref)], values)
    return merged


def _text_stages(group: str, running: Sequence[StageSpec], route: Route) -> list[StageSpec]:
    able = _knowing(group, running)
    delivering = {stage.stage_id for stage in route.finals if stage.final == "text"}
    entries = {stage.stage_id for stage in route.entries}
    chosen = [stage for stage in able if stage.stage_id in delivering]
    return chosen or [stage for stage in able if stage.stage_id in entries]


def _seeded_stages(running: Sequence[StageSpec], _route: Route) -> list[StageSpec]:
    return _knowing("seed", running)


def _image_stages(running: Sequence[StageSpec], _route: Route) -> list[StageSpec]:
    able = _knowing("image", running)
    return [one for one in able if "image" in (engine_kind(one.engine).gives or set(one.final_types))]


def _video_stages(running: Sequence[StageSpec], route: Route) -> list[StageSpec]:
    delivering = {stage.stage_id for stage in route.finals if "video" in (stage.final, *stage.also)}
    return [one for one in _knowing("image", running) if one.stage_id in delivering]


def _knowing(group: str, running: Sequence[StageSpec]) -> list[StageSpec]:
    """Stages whose engine knows a group of parameters; one that only encodes draws nothing, and has none."""
    kinds = [(stage, engine_kind(stage.engine)) for stage in running]
    return [stage for stage, kind in kinds if group in kind.parameters and not kind.only_encodes(stage.engine_args)]


def _give(params: StageParams, stages: Iterable[StageSpec], values: Mapping[str, Any]) -> None:
    for stage in stages:
        if values:
            params.setdefault(stage.name, {}).update(values)


def _stage(spec: PipelineSpec, ref: str) -> StageSpec:
    try:
        return spec.stage(ref)
    except PipelineError as error:
        raise InvalidRequest(error.message, param=f"sampling_params.{ref}") from error
