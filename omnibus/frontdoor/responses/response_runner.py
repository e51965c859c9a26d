"""The runner of responses in the background: writes what comes of each into its log, which readers follow at any front door."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from typing import cast

from omnibus.broker.layout import RESPONSE_LEASE
from omnibus.client.producer import Submission
from omnibus.errors import OmnibusError, PayloadLost, RequestCancelled
from omnibus.frontdoor.context import FrontDoorContext
from omnibus.frontdoor.job_runner import JobQueue, JobRunner
from omnibus.frontdoor.responses.log_pieces import Piece, ResponseEnd
from omnibus.frontdoor.responses.piece_maker import PieceMaker, failed
from omnibus.frontdoor.responses.response_record import ResponseRecord
from omnibus.frontdoor.responses.response_store import StoredResponse
from omnibus.observability.events import LogEvent
from omnibus.webhooks.webhook_event import EventType
from omnibus.wire import stores

APPENDS_APART = 0.02
"""Seconds between two appends to a log, at least: what comes meanwhile shares the next one."""
_QUEUE = JobQueue(stores.RESPONSES_STREAM, stores.RESPONSES_CONSUMER, RESPONSE_LEASE, "responses")


class ResponseRunner(JobRunner[ResponseRecord]):
    """Sees responses to their end, in an `async with`; what it then has in hand goes to others."""

    given_up = LogEvent.RESPONSE_GIVEN_UP

    def __init__(self, context: FrontDoorContext) -> None:
        self._responses = context.responses
        super().__init__(context, self._responses, _QUEUE)

    def rid_of(self, record: ResponseRecord) -> str:
        return record.rid

    def end_of(self, record: ResponseRecord) -> EventType:
        return cast("EventType", f"response.{record.status}")

    async def follow(self, record: ResponseRecord, submission: Submission) -> None:
        stored = await self._responses.read(record)
        current = await self._responses.known(record.owner, record.id)
        if current is None or current.cancelling:  # which came before its request
            await self.context.producer.cancel(record.pipeline, record.rid)
        if stored.fold.end is None and current is not None:
            await self._write(stored, submission)
        await self._responses.end(record, stored.fold.status, stored.nbytes)

    async def _write(self, stored: StoredResponse, submission: Submission) -> None:
        maker = PieceMaker(submission.ticket.route, stored.fold, stored.asked.head["tools"])
        waiting, appended = list[Piece](), 0.0
        async with aclosing(submission.batches()) as batches:
            async for events in batches:
                for event in events:
                    waiting += await maker.pieces(event)
                if not waiting:
                    continue
                await asyncio.sleep(max(appended + APPENDS_APART - time.monotonic(), 0.0))
                await stored.add(waiting)
                waiting.clear()
                appended = time.monotonic()

    async def fail(self, record: ResponseRecord, error: OmnibusError) -> None:
        try:
            stored = await self._responses.read(record)
        except PayloadLost:  # nothing can be written behind what is gone; the record says that it has failed
            await self._responses.end(record, "failed", 0)
            return
        if stored.fold.end is None:
            now = self._responses.now()
            is_cancelled = isinstance(error, RequestCancelled)
            await stored.add([ResponseEnd(status="cancelled", at=now) if is_cancelled else failed(error, now)])
        await self._responses.end(record, stored.fold.status, stored.nbytes)
