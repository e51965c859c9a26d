"""Says when everything that `serve` has started is up."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping

from omnibus.broker.connection import Connection
from omnibus.pipeline.spec import PipelineSpec
from omnibus.registry.presence.replica_record import ReplicaRecord
from omnibus.registry.presence.replica_view import ReplicaChange, ReplicaView
from omnibus.wire import subjects

_PAUSE = 0.05

Say = Callable[[str], None]


class Readiness:
    """Waits for replicas, orchestrator and front door, and says which of them came up."""

    def __init__(self, connection: Connection, spec: PipelineSpec, view: ReplicaView, say: Say) -> None:
        self._connection, self._spec, self._view, self._say = connection, spec, view, say

    async def wait(self, replicas: Mapping[int, int], *, front_door: tuple[str, int] | None) -> None:
        """Return once so many replicas of each stage are up, an orchestrator listens, and the front door answers.

        No deadline of its own: a process that cannot start ends everything, and a caller may cancel this.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self._replicas(replicas), name="readiness-replicas")
            group.create_task(self._orchestrator(), name="readiness-orchestrator")
            if front_door is not None:
                group.create_task(self._front_door(*front_door), name="readiness-frontdoor")

    async def _replicas(self, wanted: Mapping[int, int]) -> None:
        done = asyncio.Event()

        def on_message(change: ReplicaChange) -> None:
            came_up = change.after is not None and change.after.ready
            if came_up and (change.before is None or not change.before.ready):
                self._announce(change.after, wanted)
            if _complete(self._view, wanted):
                done.set()

        take_off = self._view.on_change(on_message)
        try:
            if not _complete(self._view, wanted):
                await done.wait()
        finally:
            take_off()

    def _announce(self, record: ReplicaRecord | None, wanted: Mapping[int, int]) -> None:
        if record is not None and record.stage_id in wanted:
            paused = ", paused: its stage takes no tasks until it is resumed" if record.paused else ""
            self._say(f"up: {self._spec.stage(record.stage_id).name} {record.replica}{paused}")

    async def _orchestrator(self) -> None:
        """An orchestrator that listens has parked a pull at the consumer of events."""
        stream = subjects.work_stream(self._spec.name)
        while True:
            info = await self._connection.api(f"CONSUMER.INFO.{stream}.{subjects.EVENTS_CONSUMER}")
            if info.get("num_waiting"):
                break
            await asyncio.sleep(_PAUSE)  # orchestrators are in no registry
        self._say("up: orchestrator")

    async def _front_door(self, host: str, port: int) -> None:
        while True:
            if await _answers(host, port):
                break
            await asyncio.sleep(_PAUSE)  # a server that does not listen yet cannot be waited for
        self._say("up: front door")


def up(view: ReplicaView) -> Counter[int]:
    """How many replicas of each stage are up, paused ones among them."""
    return Counter(record.stage_id for record in view.replicas() if record.ready)


def _complete(view: ReplicaView, wanted: Mapping[int, int]) -> bool:
    ready = up(view)
    return all(ready[stage_id] >= count for stage_id, count in wanted.items())


async def _answers(host: str, port: int) -> bool:
    """Whether something answers `GET /live` with 200."""
    try:
        async with asyncio.timeout(2.0):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(b"GET /live HTTP/1.0\r\n\r\n")
                return b" 200 " in await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
