"""Chores of an orchestrator beside events and requests; each goes on for as long as it runs, whatever fails meanwhile."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from omnibus.broker.connection import Connection
from omnibus.errors import BrokerError
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger

log = get_logger(__name__)


async def guarded(chore: Coroutine[Any, Any, None], name: str, connection: Connection, pipeline: str) -> None:
    """Do one round of the chore of this name; a failure is logged, and left to its next round."""
    try:
        await chore
    except BrokerError as error:
        log.warning(LogEvent.BROKER_ERROR, chore=name, pipeline=pipeline, error=error.message)
    except Exception:  # the root of this: the orchestrator must go on
        connection.metrics.errors.labels(where=name).inc()
        log.exception(LogEvent.TASK_CRASHED, chore=name, pipeline=pipeline)
