"""States of batches, how many of their lines are open at once, and which errors a line is sent again for."""

from __future__ import annotations

import asyncio

import pytest

from omnibus.batches.batch_record import BatchEnded, BatchRecord, BatchStatus, window_seconds
from omnibus.client.request_events import Result
from omnibus.errors import (
    BrokerRefused,
    BrokerUnavailable,
    DeadlineExceeded,
    EngineDead,
    InvalidRequest,
    OmnibusError,
    Overloaded,
    StageTimeout,
)
from omnibus.frontdoor.batching.line_call import can_begin_anew
from omnibus.frontdoor.batching.line_window import MOST_OPEN, LineWindow, most_open
from omnibus.frontdoor.submitting import is_passing
from omnibus.pipeline.spec import PipelineSpec
from omnibus.registry.presence.replica_record import ReplicaRecord, ReplicaStatus
from omnibus.requests.state import RequestState
from omnibus.wire.failure import Failure
from tests.support.flow import line

pytestmark = pytest.mark.unit
S = BatchStatus
BATCH = BatchRecord(
    id="batch_0", endpoint="/v1/completions", input_file_id="file-0", completion_window="24h", created=1.0, expires=2.0
)


def test_a_batch_comes_to_its_end_by_one_state_after_the_other() -> None:
    record = BATCH
    for at, status in enumerate((S.IN_PROGRESS, S.FINALIZING, S.COMPLETED), 5):
        assert not record.ended
        record = record.moved(status, float(at))
    assert record.ended
    assert record.times == {S.IN_PROGRESS: 5.0, S.FINALIZING: 6.0, S.COMPLETED: 7.0}
    with pytest.raises(ValueError, match="does not become"):
        record.moved(S.IN_PROGRESS, 8.0)


@pytest.mark.parametrize("status", [S.VALIDATING, S.IN_PROGRESS])
def test_a_batch_can_be_cancelled_when_it_runs(status: BatchStatus) -> None:
    record = BATCH if status is BATCH.status else BATCH.moved(status, 2.0)
    cancelling = record.cancelled(3.0)
    assert (cancelling.status, cancelling.times[S.CANCELLING]) == (S.CANCELLING, 3.0)
    assert cancelling.cancelled(4.0) == cancelling
    assert cancelling.moved(S.CANCELLED, 5.0).cancelled(6.0).status is S.CANCELLED


def test_a_batch_cannot_be_cancelled_when_its_lines_have_ended() -> None:
    finalizing = BATCH.moved(S.IN_PROGRESS, 2.0).moved(S.FINALIZING, 3.0)
    for record in (finalizing, finalizing.moved(S.COMPLETED, 4.0), BATCH.moved(S.FAILED, 2.0)):
        with pytest.raises(BatchEnded):
            record.cancelled(5.0)


@pytest.mark.parametrize(("window", "seconds"), [("24h", 86_400), ("90m", 5400), ("7d", 604_800), ("30s", 30)])
def test_a_window_is_a_time_when_it_has_a_unit(window: str, seconds: float) -> None:
    assert window_seconds(window) == seconds


@pytest.mark.parametrize("window", ["", "24", "h", "0h", "-1h", "8d", "1.5h", "24h ", "24 h", "٣h", "9999999s"])
def test_a_window_is_refused_when_it_is_none(window: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        window_seconds(window)
    assert refused.value.param == "completion_window"


def replica(stage_id: int, slots: int, status: ReplicaStatus = ReplicaStatus.UP) -> ReplicaRecord:
    return ReplicaRecord(stage_id=stage_id, replica=f"r{stage_id}", instance="i", slots=slots, status=status)


@pytest.mark.parametrize(
    ("spec", "replicas", "expected"),
    [
        (line("p", lanes=("interactive", "batch")), [], 2),
        (line("p"), [], 1),
        (line("p", lanes=("interactive", "batch")), [replica(0, 4), replica(0, 3), replica(1, 5)], 14),
        (line("p"), [replica(0, 4), replica(0, 3), replica(1, 5)], 7),
        (line("p"), [replica(0, 4), replica(1, 50, ReplicaStatus.STARTING)], 4),
        (line("p"), [replica(0, 4000)], MOST_OPEN),
        (line("p", max_open_requests=20), [replica(0, 400)], 9),
        (line("p", max_open_per_tenant=1), [replica(0, 400)], 1),
    ],
)
def test_as_many_lines_are_open_as_keep_the_widest_stage_busy(
    spec: PipelineSpec, replicas: list[ReplicaRecord], expected: int
) -> None:
    assert most_open(spec, replicas) == expected


async def granted(window: LineWindow, *expiries: float) -> list[asyncio.Task[None]]:
    """Tasks that wait for room, in this order."""
    tasks = [asyncio.create_task(window.acquire(expires)) for expires in expiries]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return tasks


async def test_room_goes_to_the_batch_that_expires_first_when_several_wait() -> None:
    window = LineWindow()
    window.resize(1)
    await window.acquire(9.0)
    late, early, middle = tasks = await granted(window, 3.0, 1.0, 2.0)
    order = []
    for _ in tasks:
        window.release(answered=True)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        order += [task for task in tasks if task.done() and task not in order]
    assert order == [early, middle, late]


async def test_room_halves_when_lines_are_refused_and_grows_again_with_answers() -> None:
    window = LineWindow()
    window.resize(8)
    for _ in range(8):
        await window.acquire(1.0)
    window.refused()
    window.refused()  # of the same moment: nothing new
    (waiting,) = await granted(window, 1.0)
    for left in (7, 6, 5, 4):
        assert not waiting.done(), left
        window.release(answered=False)
        await asyncio.sleep(0)
    window.release(answered=False)
    await waiting
    for _ in range(40):
        window.release(answered=True)
        await window.acquire(1.0)
    assert all(task.done() for task in await granted(window, *[1.0] * 4))


async def test_room_is_given_on_when_who_waited_is_gone() -> None:
    window = LineWindow()
    window.resize(1)
    await window.acquire(1.0)
    gone, other = await granted(window, 1.0, 2.0)
    window.release(answered=True)
    gone.cancel()  # in the moment in which it got the room
    await asyncio.gather(gone, return_exceptions=True)
    await asyncio.wait_for(other, 1.0)


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (Overloaded("full"), True),
        (BrokerUnavailable("away"), True),
        (BrokerRefused("no"), False),
        (EngineDead("dead"), False),
        (InvalidRequest("no"), False),
        (DeadlineExceeded(), False),
    ],
)
def test_a_line_is_sent_again_when_its_request_may_not_have_been_accepted(error: OmnibusError, passing: bool) -> None:
    assert is_passing(error) is passing


@pytest.mark.parametrize(
    ("error", "begins"),
    [
        (DeadlineExceeded(), True),
        (Overloaded("the store is full"), True),
        (BrokerUnavailable("away"), True),
        (BrokerRefused("no"), False),
        (StageTimeout(), False),
        (EngineDead("dead"), False),
    ],
)
def test_a_request_that_has_ended_is_not_sent_again_but_may_become_another(error: OmnibusError, begins: bool) -> None:
    ended = Result(
        rid="r", pipeline="p", state=RequestState.FAILED, created=1.0, deadline=2.0, run=0, outputs=(), timings=(),
        failure=Failure.of(error),
    )  # fmt: skip
    with pytest.raises(type(error)) as caught:
        ended.raise_for_state()
    assert not is_passing(caught.value), "its id has this end"
    assert can_begin_anew(caught.value) is begins


def test_a_line_does_not_begin_anew_when_its_request_was_never_accepted() -> None:
    assert not can_begin_anew(Overloaded("full"))
