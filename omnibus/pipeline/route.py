"""The way of one request through a pipeline, cut down to the stages that its outputs need.

A route travels in every envelope, so that a worker or an orchestrator can forward without reading anything, and so that
a request keeps the graph it was admitted with when the pipeline is deployed anew.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

STREAMED_MEDIA = frozenset({"audio", "video"})
"""Modalities whose chunks a caller that streams is sent; texts have a way of their own."""


class Forwarding(StrEnum):
    """The publisher of the next stage's task."""

    ORCHESTRATOR = "orchestrator"
    """The stage publishes an event; an orchestrator publishes the task."""
    DIRECT = "direct"
    """The worker that finished the stage publishes the task itself."""


class EdgeMode(StrEnum):
    """When the outputs of a stage travel along an edge."""

    WHOLE = "whole"
    """Once the stage has finished."""
    STREAM = "stream"
    """Chunk by chunk, while it runs: its target begins with the first one."""


class Target(msgspec.Struct, frozen=True, array_like=True):
    """An edge that leaves a stage."""

    stage_id: int
    forwarding: Forwarding
    mode: EdgeMode = EdgeMode.WHOLE

    @property
    def is_stream(self) -> bool:
        return self.mode is EdgeMode.STREAM


class RouteStage(msgspec.Struct, frozen=True, array_like=True):
    """One stage of a route."""

    stage_id: int
    sources: tuple[int, ...]
    """Stages whose outputs this one needs, ascending; empty: it starts from the request."""
    targets: tuple[Target, ...]
    """Edges to the stages that need this one's outputs."""
    final: str | None
    """The modality under which this stage's output is delivered, None when it is not."""
    also: tuple[str, ...] = ()
    """Modalities of its further outputs, which are delivered with that one."""

    @property
    def is_join(self) -> bool:
        return len(self.sources) > 1

    @property
    def streams_to(self) -> tuple[int, ...]:
        """Stages that read this one while it runs."""
        return tuple(target.stage_id for target in self.targets if target.is_stream)

    @property
    def whole_targets(self) -> tuple[Target, ...]:
        """Edges whose stages begin when this one has finished."""
        return tuple(target for target in self.targets if not target.is_stream)


class Route(msgspec.Struct, frozen=True, array_like=True):
    """The stages that one request runs, in topological order."""

    stages: tuple[RouteStage, ...]

    def __getitem__(self, stage_id: int) -> RouteStage:
        """Return the stage with this id; KeyError when the route does not run it."""
        for stage in self.stages:
            if stage.stage_id == stage_id:
                return stage
        raise KeyError(stage_id)

    @property
    def stage_ids(self) -> tuple[int, ...]:
        return tuple(stage.stage_id for stage in self.stages)

    @property
    def entries(self) -> tuple[RouteStage, ...]:
        """Return the stages that start from the request itself."""
        return tuple(stage for stage in self.stages if not stage.sources)

    @property
    def finals(self) -> tuple[RouteStage, ...]:
        """Return the stages whose outputs are delivered."""
        return tuple(stage for stage in self.stages if stage.final is not None)

    @property
    def may_flow(self) -> bool:
        """Whether a stage of it may have a flow, for another stage or for the caller."""
        return any(stage.streams_to or stage.final in STREAMED_MEDIA for stage in self.stages)

    def ends_with(self, stage_id: int) -> bool:
        """Whether the result of a stage is all that the end needs: the only output, of a route without joins."""
        return [stage.stage_id for stage in self.finals] == [stage_id] and not any(map(_is_join, self.stages))

    def is_ended_by_worker(self, stage_id: int) -> bool:
        """Whether the worker that finishes a stage ends the request: the last one of such a route, over a direct edge."""
        return self.ends_with(stage_id) and any(
            (target.stage_id, target.forwarding) == (stage_id, Forwarding.DIRECT)
            for source in self[stage_id].sources
            for target in self[source].targets
        )


def _is_join(stage: RouteStage) -> bool:
    return stage.is_join
