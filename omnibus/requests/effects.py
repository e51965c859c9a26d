"""Effects: acts that a decision about a request asks its shell to perform, in the order given.

Every effect may be performed twice without harm; a shell that dies between two of them repeats them all.
"""

from __future__ import annotations

from dataclasses import dataclass

from omnibus.requests.record import Record
from omnibus.wire import subjects
from omnibus.wire.envelope import AttemptFailed, Event, Task, Ticket
from omnibus.wire.out import Out


@dataclass(frozen=True, slots=True)
class ScheduleDeadline:
    """Publish the timer of a request."""

    ticket: Ticket


@dataclass(frozen=True, slots=True)
class CreateRecord:
    """Create the record; fails when the id is taken."""

    record: Record


@dataclass(frozen=True, slots=True)
class SaveRecord:
    """Replace the record by compare-and-set; when that is refused, read it again and decide again."""

    record: Record


@dataclass(frozen=True, slots=True)
class KeepDead:
    """Write the dead letter of a request whose attempts are used up; nothing when the ledger says otherwise by now."""

    record: Record


@dataclass(frozen=True, slots=True)
class DropDead:
    """Remove the dead letter of a request that was run again and has ended well, and the input that was kept for it."""

    record: Record


@dataclass(frozen=True, slots=True)
class PublishTask:
    """Queue a task and await its acknowledgement."""

    task: Task

    @property
    def msg_id(self) -> str:
        ticket = self.task.ticket
        return subjects.message_id("task", ticket.rid, self.task.stage_id, ticket.run)


@dataclass(frozen=True, slots=True)
class PublishEvent:
    """Queue an event and await its acknowledgement."""

    event: Event
    rid: str
    stage_id: int
    run: int

    @property
    def msg_id(self) -> str:
        if isinstance(self.event, AttemptFailed):
            return subjects.attempt_id(self.rid, self.event.attempt.task_seq, self.event.attempt.delivery)
        return subjects.message_id("event", self.rid, self.stage_id, self.run)


@dataclass(frozen=True, slots=True)
class Notify:
    """Publish to the producer of the request, on core NATS; may be lost."""

    front: str
    message: Out


@dataclass(frozen=True, slots=True)
class Stop:
    """Tell all workers and orchestrators to drop a request, and what still arrives of it until then."""

    rid: str
    until: float
    """Seconds since the epoch."""
    run: int
    """The run that has ended; a later one is not meant."""


@dataclass(frozen=True, slots=True)
class Purge:
    """Remove what is left of an ended request: its timer, and where asked what is queued and what its hops stored.

    Nothing is removed of a later run, nor of a later request under its id.
    """

    rid: str
    nonce: str
    run: int = 1
    """The run that has ended."""
    queued: bool = True
    """Tasks and events; nothing is there when every stage of a first run has just finished."""
    stored: bool = False
    """Payloads in the object store that only its stages needed."""
    hosted: bool = False
    """Payloads of this run, or earlier ones, are in shared memory of hosts."""
    flowed: bool = False
    """Stages of this run, or earlier ones, may have had flows."""
    resumable: bool = False
    """The input of the request, which belongs to no run, may be a flow too."""


Effect = (
    ScheduleDeadline
    | CreateRecord
    | SaveRecord
    | KeepDead
    | DropDead
    | PublishTask
    | PublishEvent
    | Notify
    | Stop
    | Purge
)
