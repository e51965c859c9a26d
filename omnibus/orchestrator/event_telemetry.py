"""Logs and metrics of an orchestrator's work."""

from __future__ import annotations

from collections.abc import Iterable

from omnibus.broker.clock import ServerClock
from omnibus.broker.delivery import Delivery
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.observability.metrics import Metrics
from omnibus.requests.effects import Effect, KeepDead, SaveRecord
from omnibus.requests.record import Record
from omnibus.requests.state import RequestState
from omnibus.wire import subjects

log = get_logger(__name__)


class EventTelemetry:
    """One line for everything that happens to a request here, and counts."""

    def __init__(self, metrics: Metrics, pipeline: str, clock: ServerClock) -> None:
        self._metrics, self._pipeline, self._clock = metrics, pipeline, clock

    def handled(self, delivery: Delivery, outcome: str) -> None:
        """An event was `forwarded`, ended its request as `poisonous`, or was put back for another try (`retried`)."""
        kind = delivery.subject.split(".")[-2]
        self._metrics.events.labels(self._pipeline, kind, outcome).inc()

    def poisonous(self, delivery: Delivery, error: Exception) -> None:
        self.handled(delivery, "poisonous")
        rid = subjects.parse_rid(delivery.subject)
        log.error(LogEvent.EVENT_POISONOUS, request=rid, subject=delivery.subject, error=str(error))

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
                    log.warning(LogEvent.REQUEST_DEAD, request=record.rid)
                case _:
                    pass

    def _ended(self, record: Record) -> None:
        seconds = max(self._clock.now() - record.ticket.created, 0.0)
        labels = (self._pipeline, record.state.value)
        self._metrics.requests.labels(*labels).inc()
        self._metrics.request_seconds.labels(*labels).observe(seconds)
        failed = {} if record.failure is None else {"code": record.failure.code}
        end = LogEvent(f"request.{record.state}")
        tell = log.debug if record.state is RequestState.DONE else log.info  # what goes well is counted
        tell(end, request=record.rid, pipeline=self._pipeline, seconds=round(seconds, 4), **failed)
