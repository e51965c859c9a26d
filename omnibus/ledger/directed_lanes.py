"""Lanes of single replicas: the tasks that wait there, and their rerouting to a lane that all replicas share."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from omnibus.broker.connection import Connection, ReceivedMessage, status_of
from omnibus.broker.delivery import published_again
from omnibus.errors import BrokerRefused, InvalidRequest
from omnibus.wire import codec, stores, subjects
from omnibus.wire.envelope import Task

_GONE = (10043, 10057)
"""Server codes: the message to delete is not there any more."""


class DirectedLanes:
    """The lanes of one pipeline. Every method raises BrokerUnavailable after about ten seconds of retries."""

    def __init__(self, connection: Connection, pipeline: str) -> None:
        self._connection, self._pipeline = connection, pipeline
        self._stream = stores.work_stream(pipeline)

    async def occupied(self) -> set[tuple[int, str]]:
        """Stage and lane of all tasks that are queued or in hand; the answer grows with their number."""
        found = await self._connection.stored_subjects(self._stream, subjects.all_tasks_filter(self._pipeline))
        return {lane for subject in found if (lane := _lane_in(subject)) is not None}

    async def first(self, stage_id: int, lane: str, after: int = 0) -> ReceivedMessage | None:
        """The first task of a lane behind a stream sequence, whether anybody has it in hand or not; it stays there."""
        body = {"seq": after + 1, "next_by_subj": subjects.tasks_filter(self._pipeline, stage_id, lane)}
        found = await self._connection.retried_request(f"$JS.API.DIRECT.GET.{self._stream}", msgspec.json.encode(body))
        if (status := status_of(found)) == "404":
            return None
        if found.headers is None or "Nats-Sequence" not in found.headers:
            raise BrokerRefused(f"cannot read lane {lane} of stage {stage_id}: status {status}")
        return found

    async def reached(self, stage_id: int, lane: str) -> int:
        """The last stream sequence that the replica of a lane was given; 0 when nobody reads it."""
        info = await self._connection.find(f"CONSUMER.INFO.{self._stream}.{stores.stage_consumer(stage_id, lane)}")
        return int(info["delivered"]["stream_seq"]) if info is not None else 0

    async def reroute(self, found: ReceivedMessage, shared: Collection[str], *, used: int) -> None:
        """Publish a task that `first` found to the shared lane that it names, then delete it where it was.

        `used` are the attempts that it has used up on its lane. `shared` are the shared lanes of the pipeline; its first
        takes what names none. Idempotent, also when several do it at once: all copies have the message id that a replica
        which hands it back would use.
        """
        headers = dict(found.headers or {})
        subject, sequence = headers["Nats-Subject"], int(headers["Nats-Sequence"])
        home = subjects.shared_lane_of(subject, _lane_of(found.data, shared))
        msg_id, kept = published_again(subject, sequence, headers, used=used)
        await self._connection.js_publish(home, found.data, msg_id, headers=kept)
        try:
            await self._connection.find(f"STREAM.MSG.DELETE.{self._stream}", {"seq": sequence, "no_erase": True})
        except BrokerRefused as refused:
            if refused.err_code not in _GONE:
                raise


def _lane_in(subject: str) -> tuple[int, str] | None:
    """Stage and lane in a task's subject; None when the subject names no stage."""
    try:
        parsed = subjects.parse_task(subject)
    except InvalidRequest:
        return None
    return parsed.stage_id, parsed.lane


def _lane_of(data: bytes, shared: Collection[str]) -> str:
    """Return the shared lane that a task asks for; the replica that takes an unreadable task there ends its request."""
    first = next(iter(shared))
    try:
        task: Task = codec.decode(data, Task)
    except InvalidRequest:
        return first
    return task.ticket.lane if task.ticket.lane in shared else first
