"""Lost attempts: what a claim names may be anything, and ends nobody who listens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from omnibus.errors import InvalidName
from omnibus.observability.metrics import Metrics
from omnibus.registry.death.lost_attempts import SilenceListener
from omnibus.registry.presence.replica_record import ReplicaRecord
from omnibus.registry.presence.replica_view import ReplicaChange


class View:
    def on_change(self, hook: Callable[[ReplicaChange], None]) -> Callable[[], None]:
        self.hook = hook
        return lambda: None


class Claims:
    def held(self, record: ReplicaRecord) -> tuple[tuple[str, str], ...]:
        return ((record.replica, "an ack subject"),)


class Lost:
    def __init__(self) -> None:
        self.reported: asyncio.Queue[str] = asyncio.Queue()

    async def notify(self, record: ReplicaRecord, *_: object) -> None:
        if record.replica == "bad":
            raise InvalidName("rid must match")
        self.reported.put_nowait(record.replica)


async def test_listener_goes_on_when_a_silent_replica_had_claimed_what_no_event_can_name() -> None:
    view, lost = View(), Lost()
    listener = SilenceListener(view, Claims(), lost, Metrics())  # type: ignore[arg-type]
    running = asyncio.create_task(listener.run())
    await asyncio.sleep(0)
    for replica in ("bad", "good"):
        record = ReplicaRecord(stage_id=0, replica=replica, instance=replica, connection="", slots=1, host="", pid=1)
        view.hook(ReplicaChange(before=record, after=None))
    async with asyncio.timeout(5):
        assert await lost.reported.get() == "good"
    running.cancel()
