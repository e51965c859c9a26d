"""A delivery that is no task: its request must end all the same."""

from __future__ import annotations

from dataclasses import dataclass

from omnibus.broker.delivery import Delivery
from omnibus.errors import InvalidRequest
from omnibus.ledger.performer import Performer
from omnibus.ledger.records import Ledger
from omnibus.requests.effects import PublishEvent
from omnibus.wire import codec, subjects
from omnibus.wire.envelope import VERSION, StageFailed, Task
from omnibus.wire.failure import Failure


@dataclass(frozen=True, slots=True)
class Malformed:
    """A delivery and what is wrong with it."""

    delivery: Delivery
    error: InvalidRequest


def decode_task(delivery: Delivery, stage_id: int) -> Task:
    """The task in a delivery; raises InvalidRequest when it is none, or not the one that its subject announces."""
    task: Task = codec.decode(delivery.data, Task)
    announced = subjects.parse_task(delivery.subject)
    if (task.ticket.rid, task.stage_id) != (announced.rid, announced.stage_id) or task.stage_id != stage_id:
        raise InvalidRequest(f"a task of {task.ticket.rid!r} for stage {task.stage_id} came on {delivery.subject!r}")
    if task.v > VERSION:
        raise InvalidRequest(f"the task has version {task.v}; this worker reads up to {VERSION}")
    try:
        task.ticket.route[stage_id]
    except KeyError:
        raise InvalidRequest(f"the route of {announced.rid!r} has no stage {stage_id}") from None
    return task


async def reject(malformed: Malformed, *, ledger: Ledger, performer: Performer, replica: str) -> None:
    """End the request that the subject names, with what is wrong, and acknowledge the delivery.

    Without a ticket in hand, the ledger's is taken; when the ledger knows no such request, or can know none by such a
    name, nobody waits for it. Raises BrokerError when the ledger or the queue cannot be reached: the delivery then comes again.
    """
    announced = subjects.parse_task(malformed.delivery.subject)
    found = await ledger.read(announced.rid) if subjects.is_name(announced.rid) else None
    if found is not None and not found.record.state.terminal:
        ticket, stage_id = found.record.ticket, announced.stage_id
        failure = Failure.of(malformed.error, stage_id=stage_id, replica=replica)
        event = StageFailed(ticket=ticket, stage_id=stage_id, failure=failure)
        await performer.perform((PublishEvent(event, announced.rid, stage_id, ticket.run),))
    await malformed.delivery.ack()
