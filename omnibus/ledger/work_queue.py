"""The work queue of a pipeline: timers of requests, their waiting messages, and the removal of both."""

from __future__ import annotations

import asyncio
from base64 import b64decode
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from omnibus.broker.connection import Connection, Publishing
from omnibus.errors import BrokerUnavailable
from omnibus.wire import codec, stores, subjects
from omnibus.wire.envelope import Event, Task


class Traffic(NamedTuple):
    """Messages of a queue, counted."""

    messages: int
    """That it holds now: tasks, events and timers."""
    removed: int
    """That have left it, ever."""


class QueueDepth(NamedTuple):
    """The messages of one consumer."""

    waiting: int = 0
    running: int = 0
    """Delivered, and not acknowledged yet."""
    since: float | None = None
    """When the oldest of those that wait was published, in the server's time, where that was asked for."""
    delivered: int = 0
    """Deliveries ever, those of the same message again included."""
    redelivered: int = 0
    """Running messages that were delivered before."""
    pulls: int = 0
    """Requests for messages that wait: of replicas with a free slot."""

    @property
    def total(self) -> int:
        return self.waiting + self.running


class WorkQueue:
    """The stream of work of one pipeline. Every method raises BrokerUnavailable after about ten seconds of retries."""

    def __init__(self, connection: Connection, pipeline: str) -> None:
        self._connection, self._pipeline = connection, pipeline
        self._work = stores.work_stream(pipeline)

    def schedule_deadline(self, rid: str, nonce: str, at: float, data: bytes = b"") -> Publishing:
        """Have the server publish a deadline event at `at` (Unix seconds; at once when that is past): await that it will.

        Kept across crashes of the server; scheduling again replaces the time.
        """
        moment = datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        target = subjects.deadline_event(self._pipeline, rid)
        headers = {"Nats-Schedule": f"@at {moment}", "Nats-Schedule-Target": target}
        return self._connection.js_publish(subjects.timer(self._pipeline, nonce, rid), data, headers=headers)

    async def next_sequence(self) -> int:
        """Return the least sequence number that the next message can have."""
        info = await self._connection.api(f"STREAM.INFO.{self._work}")
        return int(info["state"]["last_seq"]) + 1

    async def led_by(self) -> str | None:
        """The node of a cluster that leads the queue, and since when; None on a server of its own."""
        cluster = (await self._connection.api(f"STREAM.INFO.{self._work}")).get("cluster") or {}
        return f"{cluster['leader']} {cluster.get('leader_since')}" if cluster.get("raft_group") else None

    def cancel_deadline(self, rid: str, nonce: str) -> None:
        """Have the timer removed, soon: nobody waits for it. One that stays, in an outage, is left to the orphan cleanup."""
        body = msgspec.json.encode({"filter": subjects.timer(self._pipeline, nonce, rid)})
        with suppress(BrokerUnavailable):
            self._connection.send(f"$JS.API.STREAM.PURGE.{self._work}", body)

    async def purge(self, rid: str, *, before: int | None = None) -> None:
        """Remove all that is queued for a request: tasks and events of every stage and lane, and the timers. Idempotent.

        The timers go first: one could fire in between, and its event goes with the rest. What a receiver holds is removed
        too; its answer then changes nothing. With `before`, what has that sequence or a later one stays.
        """
        await self._purge(subjects.timers_filter(self._pipeline, rid), before)
        await self._purge(subjects.purge_filter(self._pipeline, rid), before)

    async def anything_queued(self, rid: str) -> bool:
        """Whether a task or an event of the request waits or is being worked on; its timer does not count."""
        body = {"last_by_subj": subjects.purge_filter(self._pipeline, rid)}
        return await self._connection.find(f"STREAM.MSG.GET.{self._work}", body) is not None

    async def present(self) -> set[str]:
        """Requests that have a timer, tasks or events here; the answer grows with their number."""
        return {subjects.parse_rid(subject) for subject in await self._connection.stored_subjects(self._work, ">")}

    async def traffic(self) -> Traffic:
        """Count the messages that are queued and those that have been."""
        state = (await self._connection.api(f"STREAM.INFO.{self._work}"))["state"]
        return Traffic(state["messages"], state["last_seq"] - state["messages"])

    async def depths(self, *, ages: bool = False) -> dict[str, QueueDepth]:
        """The depth of each consumer's queue, by consumer: `stage-<id>-<lane>` and `events`.

        Ages are a question for each queue that is not empty; raises BrokerDenied for a role that may read no tasks.
        """
        consumers = await self._consumers()
        since = await asyncio.gather(*map(self._oldest, consumers)) if ages else [None] * len(consumers)
        return {found["name"]: _depth(found, oldest) for found, oldest in zip(consumers, since, strict=True)}

    async def _consumers(self) -> list[dict[str, Any]]:
        """All of them, a page of 256 after the other: a stage with a policy has one for each replica."""
        found: list[dict[str, Any]] = []
        while True:
            info = await self._connection.api(f"CONSUMER.LIST.{self._work}", {"offset": len(found)})
            page = info["consumers"] or ()
            found += page
            if not page or len(found) >= info["total"]:
                return found

    async def raw_requests(self) -> QueueDepth:
        """Raw requests that no orchestrator has admitted yet."""
        stream = stores.requests_stream(self._pipeline)
        return _depth(await self._connection.api(f"CONSUMER.INFO.{stream}.{stores.REQUESTS_CONSUMER}"), None)

    async def _oldest(self, consumer: dict[str, Any]) -> float | None:
        """When the first message was published that a consumer has not delivered yet; None when there is none."""
        if not consumer["num_pending"]:
            return None
        first = {"seq": consumer["delivered"]["stream_seq"] + 1, "next_by_subj": consumer["config"]["filter_subject"]}
        answer = await self._connection.find(f"STREAM.MSG.GET.{self._work}", first)
        return datetime.fromisoformat(answer["message"]["time"]).timestamp() if answer is not None else None

    async def queued(self, rid: str) -> list[Task | Event]:
        """The tasks and events of a request that wait or are being worked on; those that end meanwhile may be missing."""
        found = await self._connection.stored_subjects(self._work, subjects.purge_filter(self._pipeline, rid))
        calls = [self._connection.find(f"STREAM.MSG.GET.{self._work}", {"last_by_subj": one}) for one in sorted(found)]
        answers = [answer for answer in await asyncio.gather(*calls) if answer is not None]
        return [codec.decode(b64decode(answer["message"]["data"]), Task | Event) for answer in answers]

    async def _purge(self, filter_subject: str, before: int | None) -> None:
        bound = {} if before is None else {"seq": before}
        await self._connection.api(f"STREAM.PURGE.{self._work}", {"filter": filter_subject, **bound})


def _depth(found: dict[str, Any], oldest: float | None) -> QueueDepth:
    return QueueDepth(
        found["num_pending"], found["num_ack_pending"], oldest,
        delivered=found["delivered"]["consumer_seq"], redelivered=found["num_redelivered"], pulls=found["num_waiting"],
    )  # fmt: skip
