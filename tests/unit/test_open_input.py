"""The turns of segments, and the ends of segments in a text whose messages get lost."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnibus.broker.roles import NatsRole, permissions
from omnibus.client.assembly import Assembly
from omnibus.client.request_events import Output, SegmentFinished, TextPiece
from omnibus.errors import InvalidRequest, PipelineError
from omnibus.flows.decisions import Turn, following_segment, turn_of
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.pipeline.validation import validate
from omnibus.requests.admission import digest
from omnibus.requests.request_checks import validate as validate_request
from omnibus.wire.chunk import Chunks, FlowEnd
from omnibus.wire.out import Fence, Tokens
from omnibus.wire.payload import TEXT, Payload
from omnibus.wire.request import Request, Segment, checked_segment
from omnibus.workers.engines import protocol
from omnibus.workers.engines.protocol import TextDelta
from omnibus.workers.text_stream import DeltaStream

pytestmark = pytest.mark.unit
FENCES = (Fence(1, 5, 1), Fence(1, 5, 2))


def message(number: int, *, end: bool = False, bare: bool = False) -> Chunks:
    chunks = () if bare else ({"segment": Payload.inline(b"", TEXT)},)
    return Chunks(fence=Fence(0, 0, 0), first=number - 1, chunks=chunks, end=FlowEnd() if end else None)


@pytest.mark.parametrize(
    ("number", "last", "expected"),
    [
        (1, None, Turn.NEXT),
        (2, None, Turn.EARLY),
        (3, message(3), Turn.KNOWN),
        (4, message(3), Turn.NEXT),
        (5, message(3), Turn.EARLY),
        (3, message(3, end=True), Turn.KNOWN),
        (4, message(3, end=True), Turn.CLOSED),
        (3, message(3, end=True, bare=True), Turn.KNOWN),
        (4, message(3, end=True, bare=True), Turn.CLOSED),
        (9, message(3, end=True), Turn.CLOSED),
    ],
)
def test_turn_of_a_segment_is_decided_by_the_last_message(number: int, last: Chunks | None, expected: Turn) -> None:
    assert turn_of(number, last) is expected
    assert (following_segment(last) == number) is (expected is Turn.NEXT or number == 4)


def test_digest_tells_an_open_input_from_a_whole_one() -> None:
    assert digest(Request(prompt="a")) != digest(Request(prompt="a", resumable=True))


@pytest.mark.parametrize("wrong", [{"prompt": 1.5}, {"messages": "a"}, {"end": "yes"}, {"prompt": "\ud800"}])
def test_segment_of_a_wrong_type_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest, match="malformed segment"):
        checked_segment(Segment(**wrong))  # type: ignore[arg-type]


def pipeline_of(engine: str = "python", **fields: object) -> PipelineSpec:
    timeout = fields.pop("input_timeout", 60.0)
    stage = {
        "stage_id": 0, "name": "ear", "engine": engine, "model": "a:b", "final_output": True, "final_output_type": "text",
    }  # fmt: skip
    return PipelineSpec(name="p", input_timeout=timeout, stages=(StageSpec(**{**stage, **fields}),))  # type: ignore[arg-type]


@pytest.mark.parametrize("engine", ["sim"])
def test_engine_without_an_open_input_is_named(engine: str) -> None:
    with pytest.raises(PipelineError, match=f"input_timeout: stage 'ear' has the engine {engine}"):
        validate(pipeline_of(engine))
    with pytest.raises(InvalidRequest, match=f"stage 'ear' has the engine {engine}") as caught:
        validate_request(pipeline_of(engine, input_timeout=None), Request(prompt="a", resumable=True))
    assert caught.value.param == "resumable"


@pytest.mark.parametrize("engine", ["python", "vllm"])
def test_engine_with_an_open_input_takes_it(engine: str) -> None:
    validate(pipeline_of(engine))
    validate_request(pipeline_of(engine), Request(prompt="a", resumable=True))


@pytest.mark.parametrize("timeout", [0.0, -1.0, 1e9])
def test_input_timeout_out_of_range_is_refused(timeout: float) -> None:
    with pytest.raises(PipelineError, match="input_timeout: must be from"):
        validate(pipeline_of(input_timeout=timeout))


def test_roles_may_tell_and_notice_how_far_an_open_input_is_read() -> None:
    worker, sender = (permissions(role, pipeline_of(), stages=stages, inbox="_I") for role, stages in (
        (NatsRole.WORKER, [0]), (NatsRole.FRONTDOOR, []),
    ))  # fmt: skip
    assert "omni.p.chunk.*.*.input.0" in worker.publish
    assert "omni.p.chunk.*.*.input" not in worker.publish
    assert "omni.p.chunk.*.*.input.*" in sender.subscribe


Said = list[str | None]
"""What a stage says: pieces of text, and None for the end of a segment."""


def events_of(said: Said) -> list[str | int]:
    """Text and numbers of the segments that have finished, each text whole."""
    events: list[str | int] = []
    for piece in said:
        if piece is None:
            events.append(sum(isinstance(event, int) for event in events))
        elif events and isinstance(events[-1], str):
            events[-1] += piece
        elif piece:
            events.append(piece)
    return events


def shown(events: list[object]) -> list[str | int]:
    found: Said = []
    for event in events:
        assert not isinstance(event, SegmentFinished) or event.number == found.count(None)
        found += [event.text] if isinstance(event, TextPiece) else [None] if isinstance(event, SegmentFinished) else []
    return events_of(found)


@given(
    st.lists(st.one_of(st.none(), st.sampled_from(["a", "bc", ""])), max_size=12),
    st.integers(),
    st.booleans(),
    st.booleans(),
)
def test_ends_of_segments_stand_in_their_places_whatever_is_lost(
    said: Said, seed: int, is_asked: bool, has_died: bool
) -> None:
    chance, assembly, events = random.Random(seed), Assembly(), list[object]()
    for fence in FENCES if has_died else FENCES[:1]:
        stream = DeltaStream("r", 0, fence, "out")
        for piece in said[: chance.randint(0, len(said))] if fence is FENCES[0] and has_died else said:
            stream.add(protocol.SegmentEnd() if piece is None else TextDelta(text=piece))
            if chance.random() < 0.5 and isinstance(sent := stream.next(), Tokens) and chance.random() < 0.6:
                events += assembly.tokens(sent)
        if is_asked:
            for again in stream.since(assembly.known(0)):
                events += assembly.tokens(again)
    if is_asked:
        assert shown(events) == events_of(said)
    text = "".join(piece or "" for piece in said)
    ends = tuple(
        len("".join(piece or "" for piece in said[:place])) for place, piece in enumerate(said) if piece is None
    )
    output = Output(stage_id=0, modality="text", media_type=TEXT, items=(text.encode(),), segments=ends)
    events += assembly.output(output)
    assert shown(events) == events_of(said)
