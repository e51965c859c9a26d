"""Logs and metrics of the ends and new runs of requests, by the process that writes them into the ledger."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from omnibus.broker.clock import ServerClock
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.observability.metrics import Metrics
from omnibus.requests.effects import Effect, KeepDead, SaveRecord
from omnibus.requests.record import Record
from omnibus.requests.state import RequestState

log = get_logger(__name__)


class RequestTelemetry:
    """One line for everything that the ledger learns of a request here, and counts."""

    def __init__(self, metrics: Metrics, pipeline: str, clock: ServerClock) -> None:
        self._metrics, self._pipeline, self._clock = metrics, pipeline, clock
        self._ends = cache(lambda state: metrics.requests.labels(pipeline, state))
        self._seconds = cache(lambda state: metrics.request_seconds.labels(pipeline, state))

    def performed(self, effects: Iterable[Effect], before: Record | None) -> None:
        """Effects that were decided on this record."""
        for effect in effects:
            match effect:
                case SaveRecord(record) if record.state.terminal:
                    if before is None or not before.state.terminal:  # else its history alone has changed
                        self._ended(record)
                case SaveRecord(record) if before is not None and record.ticket.run > before.ticket.run:
                    self._metrics.redriven.labels(self._pipeline).inc()
                    log.warning(LogEvent.REQUEST_REDRIVEN, request=record.rid, run=record.ticket.run)
                case KeepDead(record):
                    self._metrics.dead_letters.labels(self._pipeline).inc()
                    log.warning(LogEvent.REQUEST_DEAD, request=record.rid)
                case _:
                    pass

    def _ended(self, record: Record) -> None:
        seconds, state = max(self._clock.now() - record.ticket.created, 0.0), record.state.value
        self._ends(state).inc()
        self._seconds(state).observe(seconds)
        failed = {} if record.failure is None else {"code": record.failure.code}
        end = LogEvent(f"request.{record.state}")
        tell = log.debug if record.state is RequestState.DONE else log.info  # what goes well is counted
        tell(end, request=record.rid, pipeline=self._pipeline, seconds=round(seconds, 4), **failed)
