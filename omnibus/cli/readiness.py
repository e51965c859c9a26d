"""Says when everything that a command has started is up."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from omnibus.broker.connection import Connection
from omnibus.frontdoor.headers import PROCESS_HEADER
from omnibus.pipeline.spec import PipelineSpec
from omnibus.registry.presence.replica_record import ReplicaRecord
from omnibus.registry.presence.replica_view import ReplicaView
from omnibus.wire import stores

ORCHESTRATOR, FRONT_DOOR = "orchestrator", "front door"
_PAUSE = 0.05
_PROCESS = f"{PROCESS_HEADER.lower()}:".encode()

Say = Callable[[str, str], None]
"""Takes a part (a stage's name, or one of the above) and the rest of the line about it."""


class Readiness:
    """Waits for replicas, orchestrator and front door, and says which of them came up."""

    def __init__(
        self, connection: Connection, spec: PipelineSpec, view: ReplicaView, say: Say,
        counts: Callable[[ReplicaRecord], bool] = lambda _record: True,
    ) -> None:  # fmt: skip
        """`counts` tells the replicas that are waited for from others of the same stages."""
        self._connection, self._spec, self._view, self._say, self._counts = connection, spec, view, say, counts

    async def wait(self, replicas: Mapping[int, int], *, front_doors: tuple[str, int, int]) -> None:
        """Return once so many replicas of each stage are up, an orchestrator listens, and the front doors answer.

        `front_doors` are their address, port and number.

        No deadline of its own: a process that cannot start ends everything, and a caller may cancel this.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self.replicas(replicas), name="readiness-replicas")
            group.create_task(self._orchestrator(), name="readiness-orchestrator")
            group.create_task(self._front_doors(*front_doors), name="readiness-frontdoors")

    async def replicas(self, wanted: Mapping[int, int]) -> None:
        """Return once so many replicas of each stage are up."""
        announced: set[str] = set()

        def complete(records: Iterable[ReplicaRecord]) -> bool:
            ready = [one for one in records if one.ready and one.stage_id in wanted and self._counts(one)]
            for record in ready:
                if record.instance not in announced:
                    announced.add(record.instance)
                    paused = ", paused: its stage takes no tasks until it is resumed" if record.paused else ""
                    self._say(self._spec.stage(record.stage_id).name, f" {record.replica}{paused}")
            count = Counter(record.stage_id for record in ready)
            return all(count[stage_id] >= number for stage_id, number in wanted.items())

        await self._view.wait_until(complete, None)

    async def _orchestrator(self) -> None:
        """An orchestrator that listens has parked a pull at the consumer of events."""
        question = f"CONSUMER.INFO.{stores.work_stream(self._spec.name)}.{stores.EVENTS_CONSUMER}"
        while not (await self._connection.api(question)).get("num_waiting"):  # noqa: ASYNC110 see below
            await asyncio.sleep(_PAUSE)  # orchestrators are in no registry
        self._say(ORCHESTRATOR, "")

    async def _front_doors(self, host: str, port: int, count: int) -> None:
        """So many of them answer; the kernel picks one for each connection."""
        known: set[bytes] = set()
        while len(known) < count:
            answered = await _answering(host, port)
            if answered is None or answered in known:
                await asyncio.sleep(_PAUSE)  # a server that does not listen yet cannot be waited for
            else:
                known.add(answered)
                self._say(FRONT_DOOR, "")


async def _answering(host: str, port: int) -> bytes | None:
    """The process that answers `GET /live` with 200; None where none does."""
    try:
        async with asyncio.timeout(2.0):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(b"GET /live HTTP/1.0\r\n\r\n")
                answer = await reader.read()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return None
    status, *headers = answer.lower().split(b"\r\n")
    named = (line for line in headers if line.startswith(_PROCESS))
    return next(named, None) if b" 200 " in status else None
