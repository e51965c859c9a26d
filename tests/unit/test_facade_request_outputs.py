"""Events of a request as outputs; and the queue that outputs wait in."""

from __future__ import annotations

import asyncio
import threading
from operator import attrgetter

import numpy as np
import pytest

from omnibus.client.output_queue import OutputQueue
from omnibus.client.request_events import (
    ClientEvent,
    Ended,
    MediaPiece,
    Output,
    OutputArrived,
    Result,
    StepProgress,
    TextPiece,
)
from omnibus.client.request_outputs import OmniRequestOutput, OutputAdapter
from omnibus.errors import EngineDead, RequestCancelled
from omnibus.requests.state import RequestState
from omnibus.wire.failure import Failure

pytestmark = pytest.mark.unit

TEXT = Output(0, "text", "text/plain", (b"one two",))
IMAGE = Output(1, "image", "image/png", (b"png",))


def ended(state: RequestState = RequestState.DONE, failure: Failure | None = None) -> Ended:
    return Ended(Result("a", "p", state, 0.0, 1.0, 1, (), (), failure))


def told(*events: ClientEvent, deltas: bool = False) -> list[OmniRequestOutput]:
    output_adapter = OutputAdapter("a", "hi", deltas)
    return [output for event in events for output in output_adapter.notify(event)]


def test_last_output_is_finished_when_the_request_has_ended() -> None:
    outputs = told(OutputArrived(TEXT), OutputArrived(IMAGE), ended())
    assert [(one.stage_id, one.final_output_type, one.finished) for one in outputs] == [
        (0, "text", False), (1, "image", True),
    ]  # fmt: skip
    assert {one.prompt for one in outputs} == {"hi"}


def test_pieces_of_text_come_first_when_they_are_wanted() -> None:
    outputs = told(TextPiece(0, "one "), TextPiece(0, "two"), OutputArrived(TEXT), ended(), deltas=True)
    assert [one.delta for one in outputs] == ["one ", "two", ""]
    assert outputs[-1].text == "one two"


def test_received_text_is_the_last_output_when_the_request_is_aborted() -> None:
    """Parity: aborting a request of an LLM gives its partial text."""
    outputs = told(TextPiece(0, "one "), ended(RequestState.CANCELLED, Failure.of(RequestCancelled())))
    (last,) = outputs
    assert (last.text, last.finish_reason, last.finished) == ("one ", "abort", True)
    last.raise_for_failure()


def test_abort_has_an_output_of_its_own_when_nothing_was_received() -> None:
    (last,) = told(ended(RequestState.CANCELLED, Failure.of(RequestCancelled())))
    assert (last.text, last.stage_id, last.finish_reason, last.finished) == ("", None, "abort", True)


def test_failure_follows_the_outputs_when_some_were_delivered() -> None:
    outputs = told(OutputArrived(TEXT), ended(RequestState.FAILED, Failure.of(EngineDead("gone"))))
    assert [one.finished for one in outputs] == [False, True]
    with pytest.raises(EngineDead, match="gone"):
        outputs[1].raise_for_failure()


async def test_maker_waits_when_the_box_is_full() -> None:
    box: OutputQueue[int] = OutputQueue(lambda _: 1, bound=1)
    await box.put(1)
    waiting = asyncio.create_task(box.put(2))
    await asyncio.sleep(0)
    assert not waiting.done()
    assert [await box.take_async(1.0), await box.take_async(1.0)] == [1, 2]
    await waiting


async def test_maker_waits_when_the_bytes_that_wait_reach_their_bound() -> None:
    def image(nbytes: int) -> OmniRequestOutput:
        return OmniRequestOutput(request_id="a", prompt=None, output=Output(1, "image", "image/png", (b"p" * nbytes,)))

    queue: OutputQueue[OmniRequestOutput] = OutputQueue(attrgetter("nbytes"), most=1000)
    large, small = image(5000), image(10)
    await queue.put(large)  # alone, whatever its size
    waiting = asyncio.create_task(queue.put(small))
    await asyncio.sleep(0)
    assert not waiting.done()
    assert await queue.take_async(1.0) is large
    await waiting
    samples = MediaPiece(1, "audio", {"audio": np.zeros(300, np.float32), "sample_rate": 8000})
    sound = asyncio.create_task(queue.put(OmniRequestOutput(request_id="a", prompt=None, piece=samples)))
    await asyncio.sleep(0)
    assert not sound.done(), "ten bytes and twelve hundred"
    assert await queue.take_async(1.0) is small
    await sound


async def test_nothing_is_lost_when_a_taker_is_cancelled() -> None:
    box: OutputQueue[int] = OutputQueue(lambda _: 1)
    taker = asyncio.create_task(box.take_async(None))
    await asyncio.sleep(0)
    await box.put(1)
    taker.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taker
    assert box.take(0) == 1


async def test_takers_of_other_threads_are_served_and_let_go_when_it_closes() -> None:
    box: OutputQueue[int] = OutputQueue(lambda _: 1)
    taken: list[object] = []

    def take() -> None:
        taken.append(box.take(None))
        try:
            box.take(None)
        except EngineDead as error:
            taken.append(error.message)

    thread = threading.Thread(target=take)
    thread.start()
    await box.put(1)
    box.close(EngineDead("over"))
    await asyncio.to_thread(thread.join, 5.0)
    assert taken == [1, "over"]


async def test_nothing_comes_when_the_time_is_over() -> None:
    box: OutputQueue[int] = OutputQueue(lambda _: 1)
    assert box.take(0.01) is None
    assert await box.take_async(0.01) is None


@pytest.mark.parametrize(
    "value",
    [
        Output(1, "image", "image/png", (b"\x89PNG" * 1000, b"\n" * 5000)),
        Output(0, "text", "text/plain", (("one\ntwo \u2028 " * 100).encode(),)),
        Output(0, "text", "text/plain", (b"\xff\xfe",)),
        Result(
            "a", "p", RequestState.FAILED, 0.0, 1.0, 1, (TEXT, IMAGE), (), Failure(code="x", message="one\ntwo" * 99)
        ),
        OmniRequestOutput(request_id="a", prompt="secret " * 99, output=IMAGE, finished=True),
        OmniRequestOutput(request_id="a", prompt=None, delta="x\n" * 500),
        StepProgress(1, 2, 3, preview=b"png" * 1000),
    ],
)
def test_repr_is_one_short_line_without_bytes(value: object) -> None:
    shown = repr(value)
    assert shown.isprintable()
    assert len(shown) < 400
    assert "b'" not in shown


def test_pieces_of_a_sound_are_outputs_when_they_are_wanted() -> None:
    piece, whole = MediaPiece(2, "audio", {}), Output(2, "audio", "audio/wav", (b"wav",))
    outputs = told(piece, OutputArrived(whole), ended(), deltas=True)
    assert [(one.piece, one.output, one.final_output_type) for one in outputs] == [
        (piece, None, "audio"), (None, whole, "audio"),
    ]  # fmt: skip
    assert [one.piece for one in told(piece, OutputArrived(whole), ended())] == [None]
