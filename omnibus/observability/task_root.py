"""The root of a task: exceptions end there, logged and counted, because nobody awaits the task."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from omnibus.errors import BrokerError
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.observability.metrics import Metrics

log = get_logger(__name__)


@contextmanager
def task_root(where: str, metrics: Metrics, **fields: object) -> Iterator[None]:
    """Log with these fields what the body raises; an outage of the broker is a warning, anything else is counted under `where`.

    Cancellation passes.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001 it is reported
        report(error, where, metrics, **fields)


def report(error: Exception, where: str, metrics: Metrics, **fields: object) -> None:
    """Log and count an exception that ends at a root, from inside its `except`."""
    if isinstance(error, BrokerError | TimeoutError):
        log.warning(LogEvent.BROKER_ERROR, where=where, error=str(error) or "no answer in time", **fields)
    else:
        metrics.errors.labels(where).inc()
        log.exception(LogEvent.TASK_CRASHED, where=where, **fields)  # noqa: LOG004 it is called inside one
