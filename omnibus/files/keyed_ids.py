"""Ids of new records that callers make under idempotency keys: the same id for a key, until its record is removed."""

from __future__ import annotations

from contextlib import suppress

from omnibus.broker.bucket import Bucket
from omnibus.errors import RevisionConflict


class KeyedIds:
    """Ids by key, in the bucket of the records. A key is a token that stands for the caller's own words."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    async def id_for(self, key: str, made: str, ttl: float) -> str:
        """The id of a key; `made` where it has none yet, for `ttl` seconds."""
        try:
            await self._bucket.create(_entry(key), made.encode(), ttl=ttl)
        except RevisionConflict:
            found = await self._bucket.get_latest(_entry(key))
            return made if found is None else found.value.decode()
        return made

    async def is_of(self, key: str, record_id: str) -> bool:
        """Whether a key has this id now."""
        found = await self._bucket.get_latest(_entry(key))
        return found is not None and found.value.decode() == record_id

    async def free(self, key: str, record_id: str) -> None:
        """Have a key make a new id from now on, if it has this one."""
        found = await self._bucket.get_latest(_entry(key))
        if found is not None and found.value.decode() == record_id:
            with suppress(RevisionConflict):  # another has it by now
                await self._bucket.delete(_entry(key), found.revision)


def _entry(key: str) -> str:
    return f"=keys.{key}"  # no tenant's token has such a sign
