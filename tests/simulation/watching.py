"""Watching the coordinator: what `omnibus.broker.watch.Watch` tells, with the delay of the wire."""

from __future__ import annotations

from typing import Self

from omnibus.broker.bucket import value_of
from omnibus.broker.watch import OnChange
from tests.simulation.connection import SimConnection
from tests.simulation.streams import Stored, matches


class SimWatch:
    """Takes the place of the real one, whose resyncs have tests on a real server."""

    def __init__(
        self, connection: SimConnection, bucket: str, on_change: OnChange | None = None, *, keys: str = ">"
    ) -> None:
        self._connection, self._on_change = connection, on_change or _ignore
        self._filter = f"$KV.{bucket}.{keys}"
        self._stream = connection.world.broker.streams[f"KV_{bucket}"]
        self._prefix = f"$KV.{bucket}."
        self._known: dict[str, int] = {}

    async def __aenter__(self) -> Self:
        self._connection.world.watches.append(self)
        self._connection.on_reconnect(self.sync)
        self.sync()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._connection.world.watches.remove(self)

    def on_message(self, stored: Stored) -> None:
        """Something was written to some bucket."""
        if matches(self._filter, stored.subject):
            self._connection.arrive(lambda: self._tell(stored))

    def sync(self) -> None:
        """Everything as it stands."""
        there = [stored for stored in self._stream.messages.values() if matches(self._filter, stored.subject)]
        for stored in there:
            self._tell(stored)
        for key in sorted(set(self._known) - {stored.subject.removeprefix(self._prefix) for stored in there}):
            self._on_change(key, None, self._known.pop(key))

    def _tell(self, stored: Stored) -> None:
        key = stored.subject.removeprefix(self._prefix)
        if self._known.get(key, 0) >= stored.seq:
            return
        self._known[key] = stored.seq
        self._on_change(key, value_of(stored), stored.seq)  # type: ignore[arg-type]


def _ignore(_key: str, _value: bytes | None, _revision: int) -> None:
    return
