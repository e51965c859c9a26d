"""Gathers the evidence of a scenario, once everything of it has had time to end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from typing import Self

from omnibus.client.producer import Producer
from omnibus.client.request_events import Result
from omnibus.errors import UnknownRequest
from omnibus.requests.state import RequestState
from omnibus.wire import stores
from tests.chaos.evidence import Entry, Evidence
from tests.chaos.setups import Arena
from tests.support.memory import shared_memory
from tests.support.spoken_text import text_of_result
from tests.support.waiting import eventually

SETTLE = 15.0
"""Seconds for what is queued and stored of ended requests to go."""
_AT_ONCE = 32


class Gathering:
    """A scenario is not to blame for what was there before it: make and `begin` this first."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._connection, self._pipeline = arena.cluster.connection, arena.cluster.spec.name
        self._known, self._before = arena.ledger.known(), frozenset[str]()

    async def begin(self) -> Self:
        """Note what is there already, such as what a failed request of an earlier scenario stored."""
        self._before = frozenset(await self._left())
        return self

    async def evidence(self, accepted: Iterable[str]) -> Evidence:
        """Collect the evidence on all requests since, `accepted` or not, and on those that are still there after SETTLE."""
        ledger, wanted = self._arena.ledger, set(accepted)
        await ledger.up_to_date()
        with suppress(AssertionError):
            await eventually(lambda: ledger.all_ended(wanted | self._new()), self._arena.within)
        with suppress(AssertionError):
            await eventually(self._nothing_left, SETTLE)
        entries: dict[str, Entry] = {}
        async with Producer(self._connection) as producer:
            rids = sorted(wanted | self._new())
            for first in range(0, len(rids), _AT_ONCE):
                some = rids[first : first + _AT_ONCE]
                found = await asyncio.gather(*(self._entry(producer, rid) for rid in some))
                entries |= {rid: entry for rid, entry in zip(some, found, strict=True) if entry is not None}
        kept = {rid for rid, entry in entries.items() if entry.state == RequestState.FAILED}
        left = (name for name in await self._left() if _object_of(name) not in kept)
        return Evidence(ledger=entries, left=tuple(left))

    def _new(self) -> set[str]:
        return self._arena.ledger.known() - self._known

    async def _entry(self, producer: Producer, rid: str) -> Entry | None:
        try:
            result = await producer.result(self._pipeline, rid)
        except UnknownRequest:
            return None
        channel = await producer.channel(self._pipeline)
        is_open = result.state is RequestState.OPEN
        return Entry(
            state=result.state.value,
            ends=self._arena.ledger.ends(rid),
            text=text_of_result(result),
            code=result.failure.code if result.failure is not None else "",
            queued=not is_open or await channel.performer.queue.anything_queued(rid),
            started=_started(result),
        )

    async def _nothing_left(self) -> bool:
        return not await self._left()

    async def _left(self) -> list[str]:
        """Names of what should be gone."""
        pipeline, bucket = self._pipeline, stores.payloads_bucket(self._pipeline)
        filters = {
            stores.work_stream(pipeline): ">",
            stores.requests_stream(pipeline): ">",
            # Of a request's hops; what its answer refers to has a shorter name, and lasts as long as its record.
            f"OBJ_{bucket}": f"$O.{bucket}.C.*.*",
        }
        if self._arena.cluster.spec.has_flows:
            filters[stores.chunks_stream(pipeline)] = ">"
        found = await asyncio.gather(*(self._subjects(stream, wanted) for stream, wanted in filters.items()))
        files = {str(file) for file in shared_memory(pipeline)}
        return sorted(({name for names in found for name in names} | files) - self._before)

    async def _subjects(self, stream: str, wanted: str) -> list[str]:
        info = await self._connection.api(f"STREAM.INFO.{stream}", {"subjects_filter": wanted})
        return list(info["state"].get("subjects") or ())


def _object_of(name: str) -> str:
    """The request that a stored payload belongs to: those of a failed one stay for its retry, until they expire."""
    return name.split(".")[-2] if name.startswith("$O.") else ""


def _started(result: Result) -> dict[int, float]:
    return {timing.stage_id: timing.started for timing in result.timings}
