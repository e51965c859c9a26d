"""Logs and metrics of a replica's work."""

from __future__ import annotations

import time
import traceback
from collections import deque
from functools import cache

from omnibus.broker.clock import ServerClock
from omnibus.errors import OmnibusError
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.observability.metrics import Metrics
from omnibus.wire import subjects
from omnibus.wire.envelope import StageResult
from omnibus.wire.failure import Failure, describe, last_frame
from omnibus.workers.assignment import Assignment

_FRAMES, _HEAD, _TAIL = 40, 8000, 2000
"""Frames and characters of a traceback that are logged: texts of exceptions are of any length."""
_KNOWN = 256
"""Failures of stages' code whose traceback is in the log already."""

log = get_logger(__name__)


class TaskTelemetry:
    """One line and one count for everything that happens to a task. A line names request, stage and replica."""

    def __init__(self, metrics: Metrics, pipeline: str, stage_id: int, clock: ServerClock) -> None:
        self._metrics, self._clock = metrics, clock
        self._labels = labels = (pipeline, str(stage_id))
        self._waits = cache(lambda lane: metrics.queue_wait_seconds.labels(*labels, lane))
        self._seconds = metrics.stage_seconds.labels(*labels)
        self._busy, self._batches = metrics.busy_slots.labels(*labels), metrics.batch_size.labels(*labels)
        self._running = 0
        self._deliveries = cache(lambda outcome: metrics.deliveries.labels(*labels, outcome))
        self._redeliveries = metrics.redeliveries.labels(*labels)
        self._prompt, self._generated = metrics.prompt_tokens.labels(*labels), metrics.generation_tokens.labels(*labels)
        self._log = log.bind(stage=stage_id)
        self._raised: deque[tuple[str, str, str]] = deque(maxlen=_KNOWN)
        self.replica = ""
        self.taken = self.failed = 0
        """Tasks received, and attempts at them that came to nothing."""
        self.busy_seconds = 0.0
        """Time of those that were finished."""
        self.last_error = ""

    def received(self, assignment: Assignment) -> None:
        delivered = assignment.delivery.num_delivered
        waited = max(self._clock.now() - assignment.task.published, 0.0)
        self._waits(subjects.parse_task(assignment.delivery.subject).lane).observe(waited)
        self._running += 1
        self.taken += 1
        self._busy.inc()
        self._batches.observe(self._running)
        if delivered > 1:
            self._redeliveries.inc()
            self._say(LogEvent.TASK_REDELIVERED, assignment, delivered=delivered)
        else:
            self._log.debug(LogEvent.TASK_RECEIVED, rid=assignment.rid, replica=self.replica, waited=round(waited, 4))

    def released(self, assignment: Assignment) -> None:
        self._running -= 1
        self._busy.dec()
        if assignment.abandoned:
            self._count("abandoned")

    def finished(self, assignment: Assignment, result: StageResult) -> None:
        seconds = time.monotonic() - assignment.received
        self._count("finished")
        self.busy_seconds += seconds
        self._seconds.observe(seconds)
        if result.final is not None:
            usage = result.final.usage
            self._prompt.inc(usage.prompt_tokens)
            self._generated.inc(usage.completion_tokens)
        self._log.debug(LogEvent.TASK_FINISHED, rid=assignment.rid, replica=self.replica, seconds=round(seconds, 4))

    def retried(self, assignment: Assignment, error: OmnibusError, delay: float) -> None:
        self._count("retried")
        self.failed += 1
        self.last_error = describe(error)
        what, delivered = self.last_error, assignment.delivery.num_delivered
        self._say(LogEvent.TASK_FAILED, assignment, error=what, delivered=delivered, again=delay)

    def raised(self, assignment: Assignment, error: BaseException) -> None:
        """A stage's code raised something: its traceback, once for all attempts that fail here in the same way."""
        key = (assignment.rid, describe(error), last_frame(error))
        if key not in self._raised:
            self._raised.append(key)
            self._say(LogEvent.STAGE_RAISED, assignment, stack=_traceback(error))

    def gave_up(self, assignment: Assignment, failure: Failure, *, dead: bool) -> None:
        self._count("failed")
        self.failed += 1
        self.last_error = failure.message
        event = LogEvent.TASK_EXHAUSTED if dead else LogEvent.TASK_FAILED
        self._say(event, assignment, code=failure.code, error=failure.message, attempts=failure.attempts)

    def ended(self, assignment: Assignment, event: LogEvent) -> None:
        """Left without a result: `task.dropped` or `task.requeued`."""
        self._count(event.partition(".")[-1])
        self._say(event, assignment)

    def lease_lost(self, assignment: Assignment) -> None:
        self._metrics.leases_lost.labels(*self._labels).inc()
        self._say(LogEvent.LEASE_LOST, assignment)

    def left_behind(self, assignment: Assignment, error: Exception) -> None:
        self._say(LogEvent.PAYLOADS_LEFT, assignment, error=str(error))

    def ack_failed(self, assignment: Assignment) -> None:
        self._metrics.acks_failed.labels("worker").inc()
        self._say(LogEvent.ACK_FAILED, assignment)

    def malformed(self, subject: str, error: OmnibusError) -> None:
        """An event of its own, whose lines are bounded: anybody who may publish causes it, and could hide failures."""
        self._count("malformed")
        self._log.error(LogEvent.TASK_MALFORMED, subject=subject, replica=self.replica, error=error.message)

    def crashed(self, where: str) -> None:
        """An exception that nobody expected, from inside its `except`."""
        self._metrics.errors.labels(where).inc()
        self._log.exception(LogEvent.TASK_CRASHED, replica=self.replica)

    def _count(self, outcome: str) -> None:
        self._deliveries(outcome).inc()

    def _say(self, event: LogEvent, assignment: Assignment, **fields: object) -> None:
        self._log.warning(event, rid=assignment.rid, replica=self.replica, **fields)


def _traceback(error: BaseException) -> str:
    text = "".join(traceback.format_exception(error, limit=-_FRAMES)).rstrip()
    return text if len(text) <= _HEAD + _TAIL else f"{text[:_HEAD]} … {text[-_TAIL:]}"
