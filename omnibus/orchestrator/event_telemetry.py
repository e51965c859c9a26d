"""Logs and metrics of the events that an orchestrator handles."""

from __future__ import annotations

from omnibus.broker.delivery import Delivery
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.observability.metrics import Metrics
from omnibus.wire import subjects

log = get_logger(__name__)


class EventTelemetry:
    """One count for every event, and a line for one that nobody can handle."""

    def __init__(self, metrics: Metrics, pipeline: str) -> None:
        self._metrics, self._pipeline = metrics, pipeline

    def handled(self, delivery: Delivery, outcome: str) -> None:
        """An event was `forwarded`, ended its request as `poisonous`, or was put back for another try (`retried`)."""
        kind = delivery.subject.split(".")[-2]
        self._metrics.events.labels(self._pipeline, kind, outcome).inc()

    def poisonous(self, delivery: Delivery, error: Exception) -> None:
        self.handled(delivery, "poisonous")
        rid = subjects.parse_rid(delivery.subject)
        log.error(LogEvent.EVENT_POISONOUS, request=rid, subject=delivery.subject, error=str(error))
