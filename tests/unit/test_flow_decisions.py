"""Who may append to a flow, and what a reader takes for whole."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnibus.errors import FlowBroken, PayloadLost
from omnibus.flows.decisions import FlowCheck, Standing, standing
from omnibus.flows.flow_name import FlowName
from omnibus.wire.chunk import Chunks, FlowEnd
from omnibus.wire.out import Fence
from omnibus.wire.payload import Payload

pytestmark = pytest.mark.unit
NAME = FlowName("p", "r", "n", 1, 0, "talker")
FIRST, SECOND = Fence(1, 5, 1), Fence(1, 5, 2)


def message(first: int, count: int = 1, fence: Fence = FIRST, *, restart: bool = False, end: bool = False) -> Chunks:
    chunks = tuple({"n": Payload.inline(str(number).encode(), "text/plain")} for number in range(first, first + count))
    return Chunks(fence=fence, first=first, chunks=chunks, restart=restart, end=FlowEnd() if end else None)


def numbers(chunks: object) -> list[int]:
    return [int(one["n"].data) for one in chunks]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("last", "mine", "expected"),
    [
        (None, None, Standing.FIRST),
        (message(0), None, Standing.LATER),
        (message(0, end=True), None, Standing.COMPLETE),
        (message(0, fence=Fence(1, 6, 1)), None, Standing.SUPERSEDED),
        (message(0, fence=Fence(1, 6, 1), end=True), None, Standing.COMPLETE),
        (message(3, fence=SECOND), message(3, fence=SECOND), Standing.STORED),
        (message(3, fence=SECOND), None, Standing.STORED),
        (message(3, fence=SECOND), message(4, fence=SECOND), Standing.SUPERSEDED),
    ],
)
def test_standing_of_an_attempt_is_decided_by_the_last_message(
    last: Chunks | None, mine: Chunks | None, expected: Standing
) -> None:
    assert standing(SECOND, last, mine) is expected


def test_gap_and_repetition_are_errors_that_name_the_stage() -> None:
    for wrong, what in ((message(3), "chunks 2 to 2 are missing"), (message(1), "repeats chunk 1")):
        check = FlowCheck(NAME)
        check.take([message(0, 2)])
        with pytest.raises(FlowBroken, match=f"stage 'talker' .*{what}") as caught:
            check.take([wrong])
        assert isinstance(caught.value, PayloadLost)


def test_beginning_is_missed_when_it_was_removed() -> None:
    with pytest.raises(FlowBroken, match="chunks 0 to 3 are missing"):
        FlowCheck(NAME).take([message(4)])


def test_nothing_of_a_lower_fence_counts_when_another_attempt_has_taken_over() -> None:
    check = FlowCheck(NAME)
    assert check.take([message(0, 2), message(2, 0, SECOND)]).restarted is False
    assert numbers(check.take([message(2), message(2, 1, SECOND)]).chunks) == [2]


def test_restart_is_news_only_for_a_reader_that_had_something() -> None:
    early, late = FlowCheck(NAME), FlowCheck(NAME)
    early.take([message(0, 2)])
    again = message(0, 1, SECOND, restart=True, end=True)
    part = early.take([again])
    assert (part.restarted, part.first, numbers(part.chunks), part.end is not None) == (True, 0, [0], True)
    part = late.take([message(0, 2), again])
    assert (part.restarted, part.first, numbers(part.chunks)) == (False, 0, [0])


@given(sizes=st.lists(st.integers(0, 3), min_size=1, max_size=8), cuts=st.sets(st.integers(0, 8)))
def test_every_chunk_comes_once_and_in_order_however_messages_are_read(sizes: list[int], cuts: set[int]) -> None:
    messages, first = [], 0
    for size in sizes:
        messages.append(message(first, size))
        first += size
    check, found, batch = FlowCheck(NAME), list[int](), list[Chunks]()
    for index, one in enumerate(messages):
        batch.append(one)
        if index in cuts:
            found += numbers(check.take(batch).chunks)
            batch = []
    found += numbers(check.take(batch).chunks)
    assert found == list(range(first))
