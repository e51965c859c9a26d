"""Edges along which a stage is read while it runs: how they are written, checked, turned off and on, and routed."""

from __future__ import annotations

import pytest

from omnibus.broker.layout import layout_of
from omnibus.broker.roles import NatsRole, permissions
from omnibus.errors import PipelineError
from omnibus.pipeline.loading import parse_pipeline
from omnibus.pipeline.overrides import apply_async_chunk
from omnibus.pipeline.route import EdgeMode, Route
from omnibus.pipeline.routing import plan_route
from omnibus.pipeline.spec import PipelineSpec
from omnibus.requests.advance import flow_tasks, linear_tasks, needs_event
from omnibus.wire.envelope import StageResult, Task, Ticket
from omnibus.wire.payload import Payload

pytestmark = pytest.mark.unit


def pipeline(edges: str, engine: str = "sim", sources: str = "[0]", more: str = "", kind: str = "json") -> PipelineSpec:
    return parse_pipeline(f"""\
name: flowing
stages:
  - {{stage_id: 0, name: thinker, engine: sim, final_output: true, final_output_type: text}}
  - {{stage_id: 1, name: talker, engine: {engine}, input_sources: {sources}, final_output: true, final_output_type: {kind}{more}}}
  - {{stage_id: 2, name: judge, engine: sim, input_sources: [0], final_output: true, final_output_type: text}}
edges:
{edges}
""")


@pytest.mark.parametrize("written", ["mode: stream", "async_chunk: true", "mode: stream, async_chunk: true"])
def test_edge_streams_however_that_is_written(written: str) -> None:
    spec = pipeline(f"  - {{source: 0, target: 1, {written}}}")
    assert [target.mode for target in plan_route(spec)[0].targets] == [EdgeMode.STREAM, EdgeMode.WHOLE]
    assert plan_route(spec).may_flow


@pytest.mark.parametrize("written", ["mode: whole", "async_chunk: false", "payload: shm"])
def test_edge_is_whole_unless_it_says_otherwise(written: str) -> None:
    spec = pipeline(f"  - {{source: 0, target: 1, {written}}}")
    assert not plan_route(spec).may_flow
    assert not any("CHUNKS" in stream.name for stream in layout_of(spec).streams), "nothing is made for flows"


@pytest.mark.parametrize(
    ("edges", "given", "expected"),
    [
        ("  - {source: 0, target: 1, mode: stram}", {}, "'stram' is not one of whole, stream"),
        ("  - {source: 0, target: 1, mode: whole, async_chunk: true}", {}, "async_chunk: contradicts mode: whole"),
        ("  - {source: 0, target: 1, mode: stream}", {"sources": "[0, 2]"}, "stage 1 joins several inputs"),
        (
            "  - {source: 0, target: 1, async_chunk: true}",
            {"engine": "diffusers", "kind": "image"},
            "async_chunk: stage 1 has the engine diffusers",
        ),
        (
            "  - {source: 0, target: 1, mode: stream}",
            {"more": ", canary: {request: {prompt: x}}"},
            "stage 1 has a canary",
        ),
    ],
)
def test_edge_that_cannot_stream_is_refused_and_says_why(edges: str, given: dict[str, str], expected: str) -> None:
    with pytest.raises(PipelineError) as caught:
        pipeline(edges, **given)
    assert expected in str(caught.value)


def test_flags_turn_edges_off_and_on() -> None:
    spec = pipeline("  - {source: 0, target: 1, mode: stream}\n  - {source: 0, target: 2, async_chunk: false}")
    streams = [[edge.is_stream for edge in apply_async_chunk(spec, is_on).edges] for is_on in (True, False)]
    assert streams == [[True, True], [False, False]]


def test_flag_is_refused_when_no_edge_can_stream() -> None:
    with pytest.raises(PipelineError, match="no edge that can stream"):
        apply_async_chunk(pipeline("  - {source: 0, target: 1}"), True)
    assert not plan_route(apply_async_chunk(pipeline("  - {source: 0, target: 1}"), False)).may_flow


def test_flag_is_checked_like_a_file() -> None:
    with pytest.raises(PipelineError, match="joins several inputs"):
        apply_async_chunk(pipeline("  - {source: 0, target: 1, async_chunk: false}", sources="[0, 2]"), True)


def _ticket(route: Route) -> Ticket:
    request = Payload.inline(b"x", "x")
    return Ticket(rid="r", pipeline="flowing", route=route, created=0.0, deadline=1.0, request=request)


def test_reader_of_a_flow_gets_its_task_with_the_first_chunk_and_none_with_the_result() -> None:
    route = plan_route(pipeline("  - {source: 0, target: 1, mode: stream}"))
    task = Task(ticket=_ticket(route), stage_id=0, published=0.0)
    (early,) = flow_tasks(task, 5.0)
    assert (early.task.stage_id, early.task.flow, early.task.inputs, early.task.published) == (1, 0, {}, 5.0)
    assert early.msg_id == "task.r.1.1", "published again by a later attempt, it is the same"
    result = StageResult(ticket=task.ticket, stage_id=0, replica="r0")
    assert [effect.task.stage_id for effect in linear_tasks(result)] == [2]


def test_stage_that_only_streams_needs_no_event() -> None:
    spec = pipeline("  - {source: 0, target: 1, mode: stream}")
    route = plan_route(spec, ("json",))
    assert not needs_event(route, 0)
    assert needs_event(plan_route(spec), 0), "its own output is delivered too"


def test_roles_may_do_for_flows_what_their_stages_need_and_no_more() -> None:
    spec = pipeline("  - {source: 0, target: 1, mode: stream}")
    found = {stage: permissions(NatsRole.WORKER, spec, stages=[stage], inbox="_I") for stage in (0, 1, 2)}
    assert "omni.flowing.chunk.*.*.0" in found[0].publish
    assert "omni.flowing.task.1.*.*" in found[0].publish, "it publishes its reader's task"
    assert "omni.flowing.chunk.*.*.0" in found[1].subscribe
    assert "omni.flowing.chunk.*.*.0.1" in found[1].publish
    assert "omni.flowing.chunk.*.*.0" not in found[1].publish
    assert not any("chunk" in subject or "CHUNKS" in subject for subject in found[2].publish + found[2].subscribe)
