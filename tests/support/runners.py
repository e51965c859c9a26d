"""Which process runs a request, learned from the claims that replicas announce."""

from __future__ import annotations

import os
import signal
import time
from types import TracebackType
from typing import Self

from omnibus.broker.connection import Connection, ReceivedMessage, Subscription
from omnibus.registry.presence.replica_view import ReplicaView
from omnibus.wire import codec, subjects
from omnibus.wire.control import Announcement
from tests.support.waiting import eventually


class Runners:
    """Listens to the claims of a pipeline, in an `async with`."""

    def __init__(self, connection: Connection, pipeline: str, view: ReplicaView) -> None:
        self._connection, self._pipeline, self._view = connection, pipeline, view
        self._holders: dict[tuple[int, str], str] = {}
        self._listening: Subscription

    async def __aenter__(self) -> Self:
        self._listening = await self._connection.subscribe(subjects.claims(self._pipeline), self._on_message)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._listening.unsubscribe()

    async def kill(self, stage_id: int, rid: str) -> float:
        """Kill with -9 the replica that runs a stage of a request; returns when, in seconds of the monotonic clock."""
        replica = await eventually(lambda: self._holders.get((stage_id, rid)), what=f"a claim on {rid}")
        (pid,) = [record.pid for record in self._view.replicas(stage_id) if record.replica == replica]
        os.kill(pid, signal.SIGKILL)
        return time.monotonic()

    async def _on_message(self, message: ReceivedMessage) -> None:
        claim: Announcement = codec.decode(message.data, Announcement)
        for rid, _ack_subject in claim.taken:
            self._holders[claim.stage_id, rid] = claim.replica
