"""A key-value bucket: reads by direct get, writes by compare-and-set, a lifetime a key.

A key that expired or was deleted leaves a marker for a while. It counts as absent; its revision is what a new creation
must name, which `create` does by itself.
"""

from __future__ import annotations

import asyncio
import base64
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import msgspec

from omnibus.broker.connection import Connection, ReceivedMessage, status_of
from omnibus.errors import BrokerRefused, RevisionConflict

_EXPECTED = "Nats-Expected-Last-Subject-Sequence"
_MARKER_TTL = 60.0
MOST_AT_ONCE = 128
"""Keys that one request reads; of a ledger, each value may have half a megabyte."""
_REVISIONS_AT_ONCE = 128
"""Revisions that one request for the newest entries covers."""
_MOST_CONFLICTS = 50
"""Writers that one decision lets pass before it gives up."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.1
"""Seconds after a second conflict, and at the most after a later one."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class BucketEntry:
    """A value that is stored under a key."""

    key: str
    value: bytes
    revision: int
    """Names this value in a compare-and-set."""


class Bucket:
    """One key-value bucket. Every method retries for about ten seconds and then raises BrokerUnavailable.

    A direct get may be answered by any copy, which can lag behind a write for a moment: decide by `update`, which cannot.
    """

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection, self.name = connection, name
        self._prefix = f"$KV.{name}."
        self._get = f"$JS.API.DIRECT.GET.KV_{name}.{self._prefix}"

    async def get(self, key: str) -> BucketEntry | None:
        """The entry, None when there is none."""
        value, revision = await self._look(key)
        return BucketEntry(key, value, revision) if value is not None else None

    async def get_confirmed(self, key: str) -> BucketEntry | None:
        """Like `get`, but None only when the bucket's leader says so: for decisions that absence would make final."""
        return await self.get(key) or await self.get_latest(key)

    async def get_latest(self, key: str) -> BucketEntry | None:
        """The entry as the bucket's leader has it: for decisions that a write of a moment ago would change."""
        found = await self._connection.find(f"STREAM.MSG.GET.KV_{self.name}", {"last_by_subj": self._prefix + key})
        if found is None or _is_marker(found["message"]):
            return None
        message = found["message"]
        return BucketEntry(key, base64.b64decode(message.get("data", "")), int(message["seq"]))

    async def get_all(self, keys: Sequence[str]) -> dict[str, bytes]:
        """The values of those keys that have one, in a request for MOST_AT_ONCE of them; from any copy, as `get`."""
        found: dict[str, bytes] = {}
        for first in range(0, len(keys), MOST_AT_ONCE):
            subjects = [self._prefix + key for key in keys[first : first + MOST_AT_ONCE]]
            found |= await self._connection.retried(partial(self._last_of, subjects))
        return found

    async def _last_of(self, subjects: Sequence[str]) -> dict[str, bytes]:
        body = msgspec.json.encode({"multi_last": subjects, "batch": len(subjects)})
        found: dict[str, bytes] = {}
        asking = self._connection.request_many(f"$JS.API.DIRECT.GET.KV_{self.name}", body)
        async with aclosing(asking) as answers:
            async for message in answers:
                if status_of(message) is not None:  # the end, or none of them is there
                    break
                if (value := value_of(message)) is not None:
                    found[(message.headers or {})["Nats-Subject"].removeprefix(self._prefix)] = value
        return found

    async def newest(self, most: int) -> AsyncGenerator[BucketEntry, None]:
        """The entries of the last `most` revisions under keys without a dot, that which was written last first.

        From any copy, as `get`. One whose value was written again meanwhile may come twice.
        """
        state = (await self._connection.api(f"STREAM.INFO.KV_{self.name}"))["state"]
        last = int(state["last_seq"])
        first = max(int(state["first_seq"]), last - most + 1)
        while last >= first:
            start = max(first, last - _REVISIONS_AT_ONCE + 1)
            for entry in reversed(await self._connection.retried(partial(self._between, start, last))):
                yield entry
            last = start - 1

    async def _between(self, start: int, last: int) -> list[BucketEntry]:
        body = msgspec.json.encode({"seq": start, "next_by_subj": f"{self._prefix}*", "batch": last - start + 1})
        found: list[BucketEntry] = []
        asking = self._connection.request_many(f"$JS.API.DIRECT.GET.KV_{self.name}", body)
        async with aclosing(asking) as answers:
            async for message in answers:
                headers = message.headers or {}
                if status_of(message) is not None or int(headers["Nats-Sequence"]) > last:
                    break
                if (value := value_of(message)) is not None:
                    key = headers["Nats-Subject"].removeprefix(self._prefix)
                    found.append(BucketEntry(key, value, int(headers["Nats-Sequence"])))
        return found

    async def revision(self, key: str) -> int:
        """Return the revision that the next write of a key must name, also where only a marker is left; 0 for a new key."""
        _, revision = await self._look(key)
        return revision

    async def create(self, key: str, data: bytes, ttl: float | None = None) -> int:
        """Write a key that is absent; returns its revision. Raises RevisionConflict when it is taken.

        `ttl` is a lifetime in seconds, rounded up to whole ones. A retry that finds the very same bytes in place counts
        as its own first attempt: put a nonce in when that matters.
        """
        try:
            return await self.update(key, data, 0, ttl)
        except RevisionConflict:
            value, revision = await self._look(key)
            if value is not None or revision == 0:
                raise
            return await self.update(key, data, revision, ttl)  # only a marker was in the way

    async def update(self, key: str, data: bytes, revision: int, ttl: float | None = None) -> int:
        """Replace the value that has this revision; returns the new one. Raises RevisionConflict; retries as `create`."""
        try:
            return await self.replace(key, data, revision, ttl)
        except RevisionConflict:
            found = await self.get(key)
            if found is None or found.value != data or found.revision <= revision:
                raise
            return found.revision  # an earlier attempt was stored, and its acknowledgement lost

    async def replace(self, key: str, data: bytes, revision: int, ttl: float | None = None) -> int:
        """`update` without a look at what is there: an attempt of one's own whose acknowledgement was lost conflicts, too."""
        return await self._write(key, data, {_EXPECTED: str(revision), **_ttl_header(ttl)})

    async def put(self, key: str, data: bytes, ttl: float | None = None) -> int:
        """Write whatever is there now; returns the revision."""
        return await self._write(key, data, _ttl_header(ttl))

    async def delete(self, key: str, revision: int | None = None) -> None:
        """Delete a key, absent or not; with a `revision`, only that one: raises RevisionConflict.

        Watchers get a deletion; its marker goes after a minute.
        """
        headers = {"KV-Operation": "PURGE", "Nats-Rollup": "sub", **_ttl_header(_MARKER_TTL)}
        if revision is not None:
            headers[_EXPECTED] = str(revision)
        await self._write(key, b"", headers)

    async def keys(self, prefix: str = "") -> list[str]:
        """All keys, or those under a `prefix` that ends in a dot, in order, also of what left a marker.

        For operators: the answer grows with their number.
        """
        subjects = await self._connection.stored_subjects(f"KV_{self.name}", f"{self._prefix}{prefix}>")
        return sorted(subject.removeprefix(self._prefix) for subject in subjects)

    async def _look(self, key: str) -> tuple[bytes | None, int]:
        """Value and revision; of a marker the value is None, of nothing the revision is 0."""
        message = await self._connection.retried_request(self._get + key)
        status = status_of(message)
        if status == "404":
            return None, 0
        if message.headers is None or "Nats-Sequence" not in message.headers:
            raise BrokerRefused(f"cannot read {key} of bucket {self.name}: status {status}")
        return value_of(message), int(message.headers["Nats-Sequence"])

    async def _write(self, key: str, data: bytes, headers: Mapping[str, str]) -> int:
        ack = await self._connection.js_publish(self._prefix + key, data, headers=headers)
        return ack.seq


async def transact(attempt: Callable[[], Awaitable[T]], what: str) -> T:
    """The result of an attempt, which reads, decides, and writes by compare-and-set.

    It is made again whenever another writer was first, or a copy that was read lags behind, after pauses that grow; raises
    RevisionConflict when that happens too often.
    """
    for conflicts in range(_MOST_CONFLICTS):
        with suppress(RevisionConflict):
            return await attempt()
        await asyncio.sleep(min(_FIRST_PAUSE * (2**conflicts - 1), _LONGEST_PAUSE))
    raise RevisionConflict(f"{what} keeps changing")


def value_of(message: ReceivedMessage) -> bytes | None:
    """The value of a stored message, None when it is a marker: a deletion or an expiry."""
    headers = message.headers or {}
    if headers.get("KV-Operation") in ("DEL", "PURGE") or "Nats-Marker-Reason" in headers:
        return None
    return message.data


def _is_marker(stored: Mapping[str, str]) -> bool:
    """Whether a message, as the JetStream API describes it, marks a deletion or an expiry."""
    headers = base64.b64decode(stored.get("hdrs", ""))
    return b"KV-Operation:" in headers or b"Nats-Marker-Reason:" in headers


def _ttl_header(ttl: float | None) -> dict[str, str]:
    return {} if ttl is None else {"Nats-TTL": str(max(1, math.ceil(ttl)))}
