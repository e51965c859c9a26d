"""Routing: from the outputs that a request wants to the stages that it runs. Pure and deterministic."""

from __future__ import annotations

import heapq

from omnibus.errors import InvalidRequest, UnsupportedModality
from omnibus.pipeline.route import EdgeMode, Route, RouteStage, Target
from omnibus.pipeline.spec import PipelineSpec, StageSpec


def plan_route(spec: PipelineSpec, modalities: tuple[str, ...] | None = None) -> Route:
    """Plan the route of a request for these outputs, None for all that the pipeline delivers without being asked for each.

    Keeps the final stages of the wanted modalities (all of them, where several deliver the same) and every stage that
    they need, in topological order, ties by stage id. `spec` has passed `validate`.

    Raises UnsupportedModality for an output that the pipeline does not deliver, InvalidRequest for an empty selection.
    """
    wanted = frozenset(_wanted(spec, modalities))
    # Planned once for each set of outputs: there are as many as the pipeline's own outputs allow, whatever callers send.
    if wanted not in spec.routes:
        spec.routes[wanted] = _planned(spec, wanted)
    return spec.routes[wanted]


def _planned(spec: PipelineSpec, wanted: frozenset[str]) -> Route:
    delivered = {stage.stage_id: tuple(one for one in stage.final_types if one in wanted) for stage in spec.stages}
    needed = with_ancestors(spec, {stage_id for stage_id, modalities in delivered.items() if modalities})
    targets = _targets(spec, needed)
    return Route(
        stages=tuple(
            RouteStage(
                stage_id=stage.stage_id,
                sources=tuple(sorted(stage.input_sources)),
                targets=targets[stage.stage_id],
                final=next(iter(delivered[stage.stage_id]), None),
                also=delivered[stage.stage_id][1:],
            )
            for stage in in_topological_order(spec)
            if stage.stage_id in needed
        )
    )


def in_topological_order(spec: PipelineSpec) -> tuple[StageSpec, ...]:
    """Sort the stages, each after those it needs, ties by stage id. Stages on a cycle are left out."""
    by_id = {stage.stage_id: stage for stage in spec.stages}
    missing = {stage.stage_id: len(stage.input_sources) for stage in spec.stages}
    ready = [stage_id for stage_id, count in missing.items() if count == 0]
    heapq.heapify(ready)
    ordered = []
    while ready:
        done = heapq.heappop(ready)
        ordered.append(by_id[done])
        for stage in spec.stages:
            if done in stage.input_sources:
                missing[stage.stage_id] -= 1
                if missing[stage.stage_id] == 0:
                    heapq.heappush(ready, stage.stage_id)
    return tuple(ordered)


def _wanted(spec: PipelineSpec, modalities: tuple[str, ...] | None) -> tuple[str, ...]:
    if modalities is None:
        return spec.default_modalities
    if not modalities:
        raise InvalidRequest("modalities is empty; leave it out for the usual outputs", param="modalities")
    for modality in modalities:
        if modality not in spec.modalities:
            raise UnsupportedModality(
                f"pipeline {spec.name!r} does not produce {modality!r}; it produces {', '.join(spec.modalities)}",
                param="modalities",
            )
    return modalities


def with_ancestors(spec: PipelineSpec, finals: set[int]) -> set[int]:
    """Return these stages and all that they need."""
    sources = {stage.stage_id: stage.input_sources for stage in spec.stages}
    needed: set[int] = set()
    frontier = list(finals)
    while frontier:
        stage_id = frontier.pop()
        if stage_id not in needed:
            needed.add(stage_id)
            frontier.extend(sources[stage_id])
    return needed


def _targets(spec: PipelineSpec, needed: set[int]) -> dict[int, tuple[Target, ...]]:
    targets: dict[int, list[Target]] = {stage_id: [] for stage_id in needed}
    for stage in sorted(spec.stages, key=lambda stage: stage.stage_id):
        if stage.stage_id not in needed:
            continue
        for source in stage.input_sources:
            edge = spec.edge(source, stage.stage_id)
            mode = EdgeMode.STREAM if edge.is_stream else EdgeMode.WHOLE
            targets[source].append(Target(stage.stage_id, edge.forwarding, mode))
    return {stage_id: tuple(edges) for stage_id, edges in targets.items()}
