"""Records of what callers own, in one bucket: found and listed by those alone who own them.

An id begins with the time of its making, so that the order of ids is the order of making.
"""

from __future__ import annotations

import base64
import bisect
import re
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

from omnibus.broker.bucket import MOST_AT_ONCE, Bucket, BucketEntry
from omnibus.errors import InvalidRequest, OmnibusError

_NO_TENANT = "_"
_DIGITS = re.compile(r"[0-9a-f]{32}", re.ASCII)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A part of a list of records, in order."""

    records: Sequence[T]
    has_more: bool


def new_id(prefix: str, now: float) -> str:
    """An id; those of later records come later in the order of texts."""
    return f"{prefix}{int(now * 1000):012x}{secrets.token_hex(10)}"


class TenantRecords(Generic[T]):
    """Records of one type. Every method raises BrokerUnavailable."""

    def __init__(self, bucket: Bucket, prefix: str, kind: type[T], unknown: Callable[[str], OmnibusError]) -> None:
        """`prefix` begins every id; `unknown` makes the error of an id that the caller has no record of."""
        self.bucket, self._prefix, self._unknown = bucket, prefix, unknown
        self.decode = msgspec.msgpack.Decoder(kind).decode

    def is_id(self, text: str) -> bool:
        """Whether it has the form of an id; its record may be gone, or never have been."""
        return text.startswith(self._prefix) and _DIGITS.fullmatch(text, len(self._prefix)) is not None

    def key(self, tenant: str | None, record_id: str) -> str:
        """The key of a tenant's record; raises the error of an unknown id for what is none."""
        if not self.is_id(record_id):
            raise self._unknown(record_id)
        return f"{_token(tenant)}.{record_id}"

    async def find(self, tenant: str | None, record_id: str) -> T:
        """A tenant's record; raises the error of an unknown id."""
        return self.decode((await self.entry(tenant, record_id)).value)

    async def entry(self, tenant: str | None, record_id: str) -> BucketEntry:
        """The same with its revision."""
        found = await self.bucket.get_confirmed(self.key(tenant, record_id))
        if found is None:
            raise self._unknown(record_id)
        return found

    async def all(self, tenant: str | None) -> list[T]:
        """Every record of a tenant."""
        return [record async for record in self._of(await self._keys(tenant))]

    async def page(
        self,
        tenant: str | None,
        *,
        after: str | None,
        limit: int,
        oldest_first: bool = False,
        wanted: Callable[[T], bool] = lambda _record: True,
    ) -> Page[T]:
        """At most `limit` of a tenant's records, behind the one with the id `after`, which need not be there any more.

        The newest first, unless `oldest_first`. Raises InvalidRequest where `after` is no id.
        """
        if after is not None and not self.is_id(after):
            raise InvalidRequest(f"after: there is no id {after[:80]!r}", param="after")
        keys = await self._keys(tenant)
        if not oldest_first:
            keys.reverse()
        if after is not None:
            keys = _behind(keys, self.key(tenant, after), oldest_first=oldest_first)
        found: list[T] = []
        async for record in self._of(keys):
            if wanted(record):
                if len(found) == limit:
                    return Page(found, has_more=True)
                found.append(record)
        return Page(found, has_more=False)

    async def _keys(self, tenant: str | None) -> list[str]:
        return await self.bucket.keys(f"{_token(tenant)}.")

    async def _of(self, keys: Sequence[str]) -> AsyncIterator[T]:
        """The records of those keys that have one, in their order."""
        for first in range(0, len(keys), MOST_AT_ONCE):
            some = keys[first : first + MOST_AT_ONCE]
            values = await self.bucket.get_all(some)
            for key in some:
                if key in values:
                    yield self.decode(values[key])


def _behind(keys: list[str], key: str, *, oldest_first: bool) -> list[str]:
    if oldest_first:
        return keys[bisect.bisect_right(keys, key) :]
    return [other for other in keys if other < key]


def _token(tenant: str | None) -> str:
    """A tenant as a token of a key; None, a caller without a key, is nobody else."""
    if tenant is None:
        return _NO_TENANT
    return base64.urlsafe_b64encode(tenant.encode()).decode().rstrip("=") or "__"
