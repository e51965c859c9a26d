"""Answers of a batch's lines: how often each is tried, and the room that it takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from omnibus.batches.batch_lines import InputLine
from omnibus.batches.batch_record import BatchRecord
from omnibus.errors import DeadlineExceeded, InvalidRequest, OmnibusError, Overloaded, PayloadLost
from omnibus.frontdoor.batching import line_answers
from omnibus.frontdoor.batching.line_answers import LineAnswers
from omnibus.frontdoor.batching.line_call import MOST_ATTEMPTS
from omnibus.frontdoor.batching.line_window import LineWindow, LineWindows
from omnibus.wire.failure import Failure

pytestmark = pytest.mark.unit
BATCH = BatchRecord(
    id="batch_" + "0" * 32, endpoint="/v1/completions", input_file_id="file-0", completion_window="24h", created=1.0,
    expires=2.0,
)  # fmt: skip
LINE = b'{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {}}'


class Windows(LineWindows):
    """Room for one line; no stage has a replica for the first `missing` times."""

    def __init__(self, missing: int = 0) -> None:
        context: Any = None
        super().__init__(context)
        self.window, self.missing = LineWindow(), missing

    async def enter(self, model: str | None, expires: float) -> LineWindow:  # noqa: ARG002
        await self.window.acquire(expires)
        return self.window

    async def lacks_replicas(self, model: str | None) -> bool:  # noqa: ARG002
        self.missing -= 1
        return self.missing >= 0


class Failing(LineAnswers):
    """The answers of lines whose requests fail, each of the next error."""

    def __init__(self, windows: LineWindows, errors: Sequence[OmnibusError] = ()) -> None:
        app: Any = SimpleNamespace(state=SimpleNamespace(context=None))
        log: Any = None
        super().__init__(app, windows, log, BATCH)
        self._errors, self.rids = list(errors), list[str]()

    async def _tried(self, line: InputLine, rid: str) -> tuple[int, bytes | OmnibusError]:  # noqa: ARG002
        self.rids.append(rid.rpartition("0-")[2])
        return 500, self._errors.pop(0)


def ended_with(error: OmnibusError) -> OmnibusError:
    found = Failure.of(error).exception()
    found.ended_request = True
    return found


@pytest.mark.parametrize(
    ("errors", "missing", "rids"),
    [
        ([DeadlineExceeded()] * 3, 0, ["1", "1-1", "1-2"]),
        ([DeadlineExceeded()] * 5, 2, ["1", "1-1", "1-2", "1-3", "1-4"]),
        ([Overloaded()] * 2 + [InvalidRequest("no")], 0, ["1", "1", "1"]),
        ([ended_with(Overloaded()), InvalidRequest("no")], 0, ["1", "1-1"]),
        ([ended_with(Overloaded())] * 3, 0, ["1", "1-1", "1-2"]),
    ],
)
async def test_a_line_becomes_another_request_when_its_last_one_has_ended_in_vain(
    monkeypatch: pytest.MonkeyPatch, errors: list[OmnibusError], missing: int, rids: list[str]
) -> None:
    monkeypatch.setattr(line_answers, "_PAUSE", 0.0)
    for error in errors:
        if isinstance(error, Overloaded):
            error.retry_after = 0.0
    answers, window = Failing(Windows(missing), errors), LineWindow()
    answer = await answers._answered(1, line_answers.read_line(LINE), window)
    assert answer is not None
    assert answers.rids == rids
    assert len(rids) - missing <= MOST_ATTEMPTS


async def test_room_is_free_again_when_a_line_is_cancelled_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    has_begun = asyncio.Event()

    class Broken(Failing):
        async def _answered(self, number: int, line: InputLine, window: LineWindow) -> bytes | None:  # noqa: ARG002
            has_begun.set()
            raise PayloadLost("gone")

    async def lines(*_: object) -> AsyncIterator[tuple[int, bytes]]:
        yield 1, LINE
        await has_begun.wait()
        yield 2, LINE  # its task is cancelled by the failure of the first

    monkeypatch.setattr(line_answers, "input_lines", lines)
    windows = Windows()
    windows.window.resize(2)
    with pytest.raises(BaseExceptionGroup):
        await Broken(windows).run()
    for _ in range(2):
        await asyncio.wait_for(windows.window.acquire(1.0), 1.0)
