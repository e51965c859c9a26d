"""One runner's work at one batch: from the state in which it finds it to its end, or until another runner takes over."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from typing import cast

from fastapi import FastAPI
from msgspec.structs import replace

from omnibus.batches.batch_lines import InputCheck, file_id
from omnibus.batches.batch_record import BatchRecord, BatchStatus, LineFault
from omnibus.batches.batch_store import BatchStore
from omnibus.errors import AttemptSuperseded, BrokerError, OmnibusError, PayloadLost
from omnibus.files.file_record import BATCH_OUTPUT, UnknownFile
from omnibus.files.line_log import LineLog
from omnibus.frontdoor.batching.line_answers import LineAnswers, input_lines
from omnibus.frontdoor.batching.line_window import LineWindows
from omnibus.frontdoor.body_route import off_loop
from omnibus.frontdoor.context import FrontDoorContext
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.webhooks.webhook_event import EventType

IDLE = 10.0
"""Seconds without an answer after which a batch leaves its front door to others, where a stage of its model has no replica."""
BEAT = 1.0
"""Seconds between two renewals of the lease; progress is written then, and a cancellation noticed."""
_LOG_KEPT = 86_400.0
"""Seconds that answers are kept beyond the completion window of a batch that nobody ends."""
_REST = {
    BatchStatus.CANCELLING: ("batch_cancelled", "the batch was cancelled before this line was answered"),
    BatchStatus.IN_PROGRESS: ("batch_expired", "the batch's completion window was over before this line was answered"),
}
"""Code and message of lines that are left, by the state in which their batch is stopped."""
_ENDS = {
    BatchStatus.CANCELLING: BatchStatus.CANCELLED,
    BatchStatus.IN_PROGRESS: BatchStatus.EXPIRED,
    BatchStatus.FINALIZING: BatchStatus.COMPLETED,
}
_log = get_logger(__name__)


class NothingRuns(Exception):
    """A stage of the batch's model has no replica: its lines wait in their queue, and it in its own."""


class BatchDrive:
    """Drives one batch. Whatever it has done counts for the next one that does."""

    def __init__(
        self, app: FastAPI, windows: LineWindows, store: BatchStore, record: BatchRecord, renew: Callable[[], None]
    ) -> None:
        """`renew` keeps the message of the batch from others."""
        self._context: FrontDoorContext = app.state.context
        self._store, self._record, self._renew = store, record, renew
        self._runner = secrets.token_hex(8)
        ttl = record.expires - record.created + _LOG_KEPT
        self._log = LineLog(self._context.producer.connection, record.id, ttl=ttl)
        self._windows = windows
        self._answers = LineAnswers(app, windows, self._log, record)
        self._answered, self._moved_at = 0, time.monotonic()

    async def run(self, fault: LineFault | None = None) -> None:
        """Bring the batch to its end; with a `fault` at once, as failed, with the files of what was answered.

        Raises BrokerError, AttemptSuperseded when another runner has it, UnknownBatch, NothingRuns.
        """
        self._record = await self._store.change(self._record.tenant, self._record.id, self._claimed)
        working = asyncio.create_task(self._work(fault), name=f"{self._record.id} work")
        beating = asyncio.create_task(self._beat(), name=f"{self._record.id} beat")
        try:
            await asyncio.wait({working, beating}, return_when=asyncio.FIRST_COMPLETED)
            (working if working.done() else beating).result()
        except BaseExceptionGroup as group:
            raise _first(group) from group
        finally:
            working.cancel()
            beating.cancel()
            await asyncio.gather(working, beating, return_exceptions=True)

    def _claimed(self, record: BatchRecord) -> BatchRecord:
        return record if record.ended else replace(record, runner=self._runner)

    async def _work(self, fault: LineFault | None) -> None:
        if fault is not None and not self._record.ended:
            await self._answers.count()
            await self._finish(fault)
        if not self._record.ended:
            if self._record.status is BatchStatus.VALIDATING:
                await self._validate()
            if not self._record.ended:
                await self._answer()
            _log.info(LogEvent.BATCH_ENDED, batch=self._record.id, status=self._record.status.value)
        await announce_end(self._context, self._record)
        await self._log.remove()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT)
            with suppress(BrokerError):  # others take it when that lasts
                self._renew()
                await self._change(lambda record: replace(record, progress=self._answers.tally.progress))
                self._look()
                if await self._is_idle():
                    raise NothingRuns

    async def _is_idle(self) -> bool:
        """Whether no line was answered for a while, and none can be."""
        done, now = len(self._answers.tally.done), time.monotonic()
        if done != self._answered or self._record.status is not BatchStatus.IN_PROGRESS or self._answers.is_stopped:
            self._answered, self._moved_at = done, now
        return now >= self._moved_at + IDLE and await waits_for_replicas(self._windows, self._record)

    async def _change(self, decide: Callable[[BatchRecord], BatchRecord]) -> None:
        def checked(record: BatchRecord) -> BatchRecord:
            if record.runner != self._runner:
                raise AttemptSuperseded("another runner has the batch")
            return decide(record) if not record.ended else record

        self._record = await self._store.change(self._record.tenant, self._record.id, checked)

    def _look(self) -> None:
        """Stop a batch that is to be cancelled, or whose time is over."""
        is_over = self._record.status is BatchStatus.IN_PROGRESS and self._now() >= self._record.expires
        if is_over or self._record.status is BatchStatus.CANCELLING:
            self._answers.stop()

    async def _validate(self) -> None:
        check = InputCheck(self._record.endpoint, self._context.options.max_body_bytes)
        try:
            async for number, raw in input_lines(self._context, self._record):
                await off_loop(len(raw), check.add, number, raw)
                if check.is_over:
                    break
            check.finish()
        except (UnknownFile, PayloadLost) as error:
            check.faults.append(_lost_input(error))

        def decide(record: BatchRecord) -> BatchRecord:
            if record.status is not BatchStatus.VALIDATING:  # cancelled meanwhile
                return record
            if check.faults:
                return record.moved(BatchStatus.FAILED, self._now(), faults=tuple(check.faults))
            return record.moved(BatchStatus.IN_PROGRESS, self._now(), total=check.total, model=check.model)

        await self._change(decide)

    async def _answer(self) -> None:
        """Answer what has no answer, and write the files."""
        await self._answers.count()
        self._look()
        fault = None
        try:
            if self._has_more:
                await self._answers.run()
            if self._has_more:
                await self._answers.answer_rest(*_REST[self._record.status])
        except* (UnknownFile, PayloadLost) as group:
            fault = _lost_input(_first(group))
        await self._finish(fault)

    @property
    def _has_more(self) -> bool:
        return len(self._answers.tally.done) < self._record.total

    async def _finish(self, fault: LineFault | None) -> None:
        """Write the files, and end the batch; it has failed where there is a `fault`."""

        def finalizing(record: BatchRecord) -> BatchRecord:
            is_whole = record.status is BatchStatus.IN_PROGRESS and fault is None and not self._answers.is_stopped
            return record.moved(BatchStatus.FINALIZING, self._now()) if is_whole else record

        await self._change(finalizing)
        progress = self._answers.tally.progress
        output = await self._file("output", succeeded=True) if progress.completed else None
        errors = await self._file("error", succeeded=False) if progress.failed else None

        def ended(record: BatchRecord) -> BatchRecord:
            status = BatchStatus.FAILED if fault is not None else _ENDS[record.status]
            faults = () if fault is None else (fault,)
            return record.moved(
                status, self._now(), progress=progress, output_file_id=output, error_file_id=errors, faults=faults
            )

        await self._change(ended)

    async def _file(self, kind: str, *, succeeded: bool) -> str:
        """The id of the file of one kind of answers, which is stored now."""
        made, batch = file_id(self._record.id, kind), self._record
        await self._context.files.add_once(
            batch.tenant, made, self._answers.of(succeeded=succeeded), filename=f"{batch.id}_{kind}.jsonl",
            purpose=BATCH_OUTPUT, lifetime=batch.output_lifetime,
        )  # fmt: skip
        return made

    def _now(self) -> float:
        return self._store.clock.now()


async def waits_for_replicas(windows: LineWindows, batch: BatchRecord) -> bool:
    """Whether no line of a batch can run now: all name one model, a stage of which has no replica up."""
    return batch.model is not None and await windows.lacks_replicas(batch.model)


async def announce_end(context: FrontDoorContext, batch: BatchRecord) -> None:
    """Queue the webhooks of a batch that has ended; idempotent."""
    kind = cast("EventType", f"batch.{batch.status.value}")
    await context.webhooks.notify(batch.tenant, kind, batch.id)


def _lost_input(error: BaseException) -> LineFault:
    message = error.message if isinstance(error, OmnibusError) else str(error)
    return LineFault(code=UnknownFile.code, message=f"the input cannot be read: {message}", param="input_file_id")


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error of a group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
