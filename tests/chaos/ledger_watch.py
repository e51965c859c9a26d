"""Every write to the ledger, watched: which requests there are, and how often each was written as ended."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Self

from omnibus.broker.connection import Connection
from omnibus.broker.watch import Watch
from omnibus.requests.record import Record
from omnibus.wire import codec, stores
from tests.support.waiting import eventually

_DEAD = "dead."
_End = tuple[int, str, str, tuple[int, ...]]
"""Run, state, error, stages with an output."""


class LedgerWatch:
    """In an `async with`. A watch may leave out what is written over at once, but not that a record was written after its end."""

    def __init__(self, connection: Connection, pipeline: str) -> None:
        self._watch = Watch(connection, stores.requests_bucket(pipeline), self._changed)
        self._ends: dict[str, set[_End]] = {}

    async def __aenter__(self) -> Self:
        await self._watch.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._watch.__aexit__(kind, error, trace)

    async def up_to_date(self) -> None:
        """Return once what was written is known here."""
        await eventually(lambda: self._watch.synced, 20, what="the watch on the ledger is up to date")

    def known(self) -> set[str]:
        """Ids of all requests in the ledger."""
        return {key for key in self._watch.snapshot if not key.startswith(_DEAD)}

    def ends(self, rid: str) -> int:
        """How many different ends were written of a request. A failed one's history may still grow after its end."""
        return len(self._ends.get(rid, ()))

    def all_ended(self, rids: Iterable[str]) -> bool:
        """Whether the last word on every one of these is an end."""
        return all(rid in self._ends for rid in rids)

    def _changed(self, key: str, value: bytes | None, _revision: int) -> None:
        if value is None or key.startswith(_DEAD):
            return
        record: Record = codec.decode(value, Record)
        if record.state.terminal or key in self._ends:
            code = record.failure.code if record.failure is not None else ""
            self._ends.setdefault(key, set()).add(
                (record.ticket.run, record.state, code, tuple(sorted(record.outputs)))
            )
