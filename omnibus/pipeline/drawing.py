"""A pipeline as text: `omnibus pipeline show`."""

from __future__ import annotations

from collections.abc import Iterator

from omnibus.pipeline.policies import LoadBalancingPolicy
from omnibus.pipeline.route import Forwarding
from omnibus.pipeline.routing import in_topological_order
from omnibus.pipeline.spec import EdgeSpec, PayloadRule, PipelineSpec, StageSpec


def draw_pipeline(spec: PipelineSpec) -> str:
    """Draw the graph of a valid pipeline, a line a stage, indented by its layer: the longest way to it from the request.

    A join is drawn in full under its deepest source, and as a pointer to itself under the others. `─▶` is an edge that goes
    through an orchestrator, `═▶` a direct one.
    """
    lines = [_title(spec), "", "request"]
    lines += _Tree(spec).lines()
    if any(edge.forwarding is Forwarding.DIRECT for edge in spec.edges):
        lines += ["", "─▶ forwarded by an orchestrator   ═▶ forwarded by the worker itself"]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _title(spec: PipelineSpec) -> str:
    return (
        f"{spec.name}: {', '.join(spec.modalities)}\n"
        f"lanes {', '.join(spec.lanes)} · deadline {spec.deadline:g} s · heartbeat timeout {spec.heartbeat_timeout:g} s"
        f" · at most {spec.max_open_requests} open requests"
    )


class _Tree:
    """The graph as a tree: each stage under one of its sources."""

    def __init__(self, spec: PipelineSpec) -> None:
        self._spec = spec
        self._order = in_topological_order(spec)
        self._layers = self._layers_of()

    def lines(self) -> list[str]:
        rows = list(self._below(None, ""))
        width = max(len(left) for left, _ in rows)
        return [f"{left:<{width}}   {right}" if right else left for left, right in rows]

    def _layers_of(self) -> dict[int, int]:
        layers: dict[int, int] = {}
        for stage in self._order:
            layers[stage.stage_id] = 1 + max((layers[source] for source in stage.input_sources), default=0)
        return layers

    def _below(self, parent: StageSpec | None, indent: str) -> Iterator[tuple[str, str]]:
        """List the rows below a stage (None: the request), each a drawing and a description."""
        children = [stage for stage in self._order if self._is_fed_by(stage, parent)]
        for child in children:
            last = child is children[-1]
            edge = EdgeSpec(source=-1, target=-1)
            if parent is not None:
                edge = self._spec.edge(parent.stage_id, child.stage_id)
            arrow = ("╰" if last else "├") + ("══▶" if edge.forwarding is Forwarding.DIRECT else "──▶")
            label = f"{indent}{arrow} {child.stage_id} {child.name}{_payload(edge)}"
            if self._drawn_under(child) is not parent:
                yield f"{label} ↓", ""
                continue
            yield label, self._described(child, parent)
            yield from self._below(child, indent + ("     " if last else "│    "))

    def _is_fed_by(self, stage: StageSpec, parent: StageSpec | None) -> bool:
        return parent.stage_id in stage.input_sources if parent else not stage.input_sources

    def _drawn_under(self, stage: StageSpec) -> StageSpec | None:
        """Pick the deepest source; of several the last in topological order."""
        sources = [source for source in self._order if source.stage_id in stage.input_sources]
        return max(reversed(sources), key=lambda source: self._layers[source.stage_id], default=None)

    def _described(self, stage: StageSpec, parent: StageSpec | None) -> str:
        facts = [" ".join(filter(None, (stage.engine, stage.model))), _capacity(stage)]
        if stage.devices:
            facts.append(f"devices {stage.devices}")
        if LoadBalancingPolicy(stage.lb_policy).directed:
            facts.append(stage.lb_policy)
        others = [source for source in stage.input_sources if parent and source != parent.stage_id]
        if others:
            facts.append("joined with " + ", ".join(self._spec.stage(source).name for source in others))
        output = f"   ⇒ {', '.join(stage.final_types)}" if stage.final_output else ""
        return " · ".join(facts) + output


def _payload(edge: EdgeSpec) -> str:
    return "" if edge.payload is PayloadRule.AUTO else f" ({edge.payload})"


def _capacity(stage: StageSpec) -> str:
    replicas = f"{stage.num_replicas} replica{'' if stage.num_replicas == 1 else 's'}"
    return f"{replicas} × {stage.slots} slot{'' if stage.slots == 1 else 's'}"
