"""The report to somebody who waits for a request: while nothing comes, which stages were tried again and which are missing."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress

from omnibus.client.cluster_view import ClusterView
from omnibus.client.producer import Producer
from omnibus.client.request_events import OutputArrived
from omnibus.errors import OmnibusError
from omnibus.frontdoor.stage_readiness import missing_stages
from omnibus.pipeline.routing import plan_route, with_ancestors
from omnibus.pipeline.spec import PipelineSpec
from omnibus.requests.record import Record
from omnibus.wire.failed_attempt import Attempt
from omnibus.wire.request import Request

_SILENCE, _MISSING_AGAIN, _LOOK_DEADLINE = 2.0, 15.0, 5.0
"""Seconds without any event after which the report looks; seconds before it names missing stages again; seconds for a look."""


class WaitingReport:
    """Says, in each silence of one request, what is known of the reason. What it cannot find out it passes over."""

    def __init__(
        self, producer: Producer, spec: PipelineSpec, request: Request, rid: str, say: Callable[[str], None]
    ) -> None:
        """`say` shows a line."""
        self._producer, self._spec, self._rid, self._say = producer, spec, rid, say
        self._needed = {stage.stage_id for stage in plan_route(spec, request.modalities).stages}
        self._since = time.monotonic()
        self._missing_at = -_MISSING_AGAIN
        self._shown: set[tuple[int, int]] = set()

    def take(self, event: object) -> None:
        """End the silence: an event has come. A stage whose output is here is needed no more, nor are those before it."""
        self._since = time.monotonic()
        if isinstance(event, OutputArrived):
            self._needed -= with_ancestors(self._spec, {event.output.stage_id})

    async def run(self) -> None:
        """Report until cancelled."""
        while True:
            await asyncio.sleep(_SILENCE)
            if time.monotonic() - self._since < _SILENCE:
                continue
            with suppress(TimeoutError, OmnibusError):
                async with asyncio.timeout(_LOOK_DEADLINE):
                    await self._say_failed_attempts()
                    await self._say_missing_stages()

    async def _say_failed_attempts(self) -> None:
        """A line for each failed attempt that another one follows, once."""
        record = (await (await self._producer.channel(self._spec.name)).entry(self._rid)).record
        most = record.ticket.max_attempts
        for number, attempt in numbered_attempts(record):
            is_new = (attempt.task_seq, attempt.delivery) not in self._shown
            self._shown.add((attempt.task_seq, attempt.delivery))
            if is_new and number < most and attempt.stage_id in self._needed:
                stage, why = self._spec.stage_name(attempt.stage_id), " ".join(attempt.message.split())
                self._say(f"stage {stage!r}: attempt {number + 1} of {most}; the one before failed: {why}")

    async def _say_missing_stages(self) -> None:
        if time.monotonic() < self._missing_at + _MISSING_AGAIN:
            return
        async with ClusterView(self._producer.connection) as cluster:
            missing = missing_stages(self._spec, await cluster.replicas(self._spec), self._needed)
        if missing:
            self._missing_at = time.monotonic()
            self._say(f"waiting for a replica of {', '.join(map(str, missing))}")


def numbered_attempts(record: Record) -> Iterator[tuple[int, Attempt]]:
    """The failed attempts of a request's present run, and which attempt at its stage each was, from 1; in their order.

    At the least: attempts that nobody reported count where a delivery of the same message shows them.
    """
    numbers = Counter[int]()
    present = [attempt for attempt in record.attempts if attempt.run == record.ticket.run]
    for attempt in sorted(present, key=lambda one: (one.task_seq, one.delivery)):
        number = numbers[attempt.stage_id] = max(numbers[attempt.stage_id] + 1, attempt.delivery)
        yield number, attempt
