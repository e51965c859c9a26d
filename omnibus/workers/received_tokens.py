"""What an earlier attempt at a stage said and its client has: asked for, to go on from there."""

from __future__ import annotations

from omnibus.broker.connection import Connection
from omnibus.errors import OmnibusError
from omnibus.wire import codec, subjects
from omnibus.wire.envelope import Task
from omnibus.wire.out import AskReceived, Fence, Received

ANSWER_TIMEOUT = 0.2
"""Seconds in which a follower must have answered; with nobody there the stage begins again."""


async def received(conn: Connection, task: Task, fence: Fence) -> tuple[int, ...]:
    """Token ids that a follower of the request has passed on of this stage; empty when nobody answers.

    From its answer on, the follower drops what comes of attempts below the fence.
    """
    ticket = task.ticket
    if ticket.front is None:
        return ()
    question = AskReceived(rid=ticket.rid, stage_id=task.stage_id, fence=fence)
    subject = subjects.out(ticket.pipeline, ticket.front, ticket.rid)
    try:
        answer = await conn.request(subject, codec.encode(question), timeout=ANSWER_TIMEOUT)
        known: Received = codec.decode(answer.data, Received)
    except OmnibusError:
        return ()
    return known.token_ids
