"""The answers of a batch's lines: each made by its endpoint, tried again while that can help, and appended once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial

from fastapi import FastAPI

from omnibus.batches.batch_lines import (
    InputLine,
    Tally,
    error_line,
    line_rid,
    model_of,
    numbered_lines,
    read_line,
    response_line,
)
from omnibus.batches.batch_record import BatchRecord
from omnibus.broker.objects import CHUNK
from omnibus.errors import AttemptSuperseded, OmnibusError, Overloaded, RevisionConflict
from omnibus.files.line_log import LineLog
from omnibus.frontdoor.batching.line_call import MOST_ATTEMPTS, LineCaller, call, can_begin_anew
from omnibus.frontdoor.batching.line_window import LineWindow, LineWindows
from omnibus.frontdoor.context import FrontDoorContext
from omnibus.frontdoor.error_answers import ServerFault, error_json
from omnibus.frontdoor.submitting import CallerGone, is_passing
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger

_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
"""Seconds before a line is sent again for the first time, and at most."""
_TURN = 64
"""Lines of an input after which others have their turn."""
_log = get_logger(__name__)


async def input_lines(context: FrontDoorContext, record: BatchRecord) -> AsyncIterator[tuple[int, bytes]]:
    """The lines of a batch's input with their numbers; raises UnknownFile, and PayloadLost when it is removed meanwhile."""
    file = await context.files.find(record.tenant, record.input_file_id)
    async for number, raw in numbered_lines(context.files.read(file), context.options.max_body_bytes):
        if number % _TURN == 0:
            await asyncio.sleep(0)
        yield number, raw


class LineAnswers:
    """Answers the lines of one batch that have no answer yet."""

    def __init__(self, app: FastAPI, windows: LineWindows, log: LineLog, record: BatchRecord) -> None:
        self._app, self._windows, self._answers, self._batch = app, windows, log, record
        self._context: FrontDoorContext = app.state.context
        self._caller = LineCaller(record.tenant, record.keep, asyncio.get_running_loop().create_future())
        self.tally = Tally()

    async def count(self) -> None:
        """Count what earlier runners have appended."""
        async for raw in self._answers.lines():
            self.tally.add(raw)

    async def of(self, *, succeeded: bool) -> AsyncIterator[bytes]:
        """The answers of all lines that succeeded, or of those that did not; each once."""
        seen = Tally()
        async for raw in self._answers.lines():
            if seen.add(raw) is succeeded:
                yield raw + b"\n"

    def stop(self) -> None:
        """Begin no further line, and cancel those that are open; idempotent."""
        if not self._caller.gone.done():
            self._caller.gone.set_result(None)

    @property
    def is_stopped(self) -> bool:
        return self._caller.gone.done()

    async def run(self) -> None:
        """Answer every line, or those that have their answer when it is stopped. Raises as `input_lines`, BrokerError, and
        AttemptSuperseded when another runner has appended."""
        async with asyncio.TaskGroup() as group:
            feeding = group.create_task(self._feed(group), name=f"{self._batch.id} feeding")
            self._caller.gone.add_done_callback(lambda _gone: feeding.cancel())

    async def _feed(self, group: asyncio.TaskGroup) -> None:
        async for number, raw in input_lines(self._context, self._batch):
            if number not in self.tally.done:
                line = read_line(raw)
                window = await self._windows.enter(model_of(line), self._batch.expires)
                task = group.create_task(self._answer(number, line, window), name=f"{self._batch.id} {number}")
                task.add_done_callback(partial(_release, window))  # also of a task that is cancelled before it begins

    async def _answer(self, number: int, line: InputLine, window: LineWindow) -> bool:
        """Answer a line; False when it was stopped before it had one."""
        answer = await self._answered(number, line, window)
        if answer is not None:
            await self._append(answer)
            self.tally.add(answer)
        return answer is not None

    async def _append(self, answers: bytes) -> None:
        try:
            await self._answers.append(answers)
        except RevisionConflict as error:
            raise AttemptSuperseded("another runner has the batch") from error

    async def _answered(self, number: int, line: InputLine, window: LineWindow) -> bytes | None:
        """The answer of a line; None when it was stopped before it had one."""
        attempt, ran, pause = 0, 0, _PAUSE
        while not self._caller.gone.done():
            rid = line_rid(self._batch.id, number, attempt)
            status, body = await self._tried(line, rid)
            if isinstance(body, bytes):
                return response_line(self._batch.id, number, line.custom_id, status=status, rid=rid, body=body)
            if is_passing(body):
                if isinstance(body, Overloaded):
                    window.refused()
            elif can_begin_anew(body) and (ran := ran + await self._has_run(line)) < MOST_ATTEMPTS:
                attempt += 1
            elif not isinstance(body, CallerGone):
                text = error_json(body)
                return response_line(self._batch.id, number, line.custom_id, status=status, rid=rid, body=text)
            await asyncio.wait({self._caller.gone}, timeout=max(pause, getattr(body, "retry_after", 0.0)))
            pause = min(2 * pause, _LONGEST_PAUSE)
        return None

    async def _tried(self, line: InputLine, rid: str) -> tuple[int, bytes | OmnibusError]:
        """Status and body of what the endpoint answers, or its error."""
        try:
            response = await call(self._app, line, self._caller, rid)
        except OmnibusError as error:
            return error.http_status, error
        except Exception:  # noqa: BLE001 the root of a line's task
            self._context.metrics.errors.labels("batch").inc()
            _log.exception(LogEvent.TASK_CRASHED, rid=rid, where="batch")
            return ServerFault.http_status, ServerFault()
        return response.status_code, bytes(response.body)

    async def _has_run(self, line: InputLine) -> bool:
        """Whether the request of a line that waited too long counts: it does not where nobody could run it."""
        return not await self._windows.lacks_replicas(model_of(line))

    async def answer_rest(self, code: str, message: str) -> None:
        """Answer the lines that are left with this error. Raises as `run`."""
        waiting, waiting_bytes = list[bytes](), 0

        async def append() -> None:
            await self._append(b"".join(waiting))
            for one in waiting:
                self.tally.add(one)
            waiting.clear()

        async for number, raw in input_lines(self._context, self._batch):
            if number not in self.tally.done:
                waiting.append(error_line(self._batch.id, number, read_line(raw).custom_id, code=code, message=message))
                waiting_bytes += len(waiting[-1])
            if waiting_bytes > CHUNK:
                await append()
                waiting_bytes = 0
        if waiting:
            await append()


def _release(window: LineWindow, task: asyncio.Task[bool]) -> None:
    window.release(answered=not task.cancelled() and task.exception() is None and task.result())
