"""Links to files: one reads its file without a key, until the link expires or the file is gone.

A link is a random token of which the broker keeps a hash. So there is no secret that signs, and none that could sign others'.
"""

from __future__ import annotations

import hashlib
import secrets

import msgspec

from omnibus.broker.bucket import Bucket
from omnibus.broker.connection import Connection
from omnibus.files.file_record import unknown_file
from omnibus.wire import stores


class FileLink(msgspec.Struct, frozen=True, kw_only=True):
    """The file that a link leads to."""

    tenant: str | None
    file_id: str
    media_type: str


class FileLinks:
    """Makes and finds links over one connection. Every method raises BrokerUnavailable."""

    def __init__(self, connection: Connection) -> None:
        self._bucket = Bucket(connection, stores.FILES_BUCKET)

    async def add(self, link: FileLink, lifetime: float) -> str:
        """The token of a new link, which lives for `lifetime` seconds."""
        token = secrets.token_urlsafe(32)
        await self._bucket.create(_key(token), msgspec.msgpack.encode(link), ttl=lifetime)
        return token

    async def find(self, file_id: str, token: str) -> FileLink:
        """The link to a file that has this token; raises UnknownFile where there is none, or none any more."""
        found = await self._bucket.get_confirmed(_key(token))
        link = None if found is None else msgspec.msgpack.decode(found.value, type=FileLink)
        if link is None or link.file_id != file_id:
            raise unknown_file(file_id)
        return link


def _key(token: str) -> str:
    return f"=links.{hashlib.sha256(token.encode()).hexdigest()}"  # no tenant's token has such a sign
