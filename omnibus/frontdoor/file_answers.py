"""Stored files as answers: whole, or the part that the header `Range` names, and never whole in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi import Request as HttpRequest
from starlette.responses import StreamingResponse

from omnibus.errors import PayloadLost
from omnibus.files.file_record import FileRecord
from omnibus.files.file_store import FileStore
from omnibus.frontdoor.byte_range import requested_range


async def file_response(
    files: FileStore,
    owner: str | None,
    record: FileRecord,
    http: HttpRequest,
    media_type: str = "application/octet-stream",
) -> StreamingResponse:
    """The bytes of a file of this tenant, or a part of them; the first are read before the answer begins.

    Raises RangeNotSatisfiable; UnknownFile when the file was deleted or has expired meanwhile; PayloadLost.
    """
    part = requested_range(http.headers.get("range"), record.nbytes)
    nbytes = record.nbytes if part is None else part.nbytes
    headers = {
        "Accept-Ranges": "bytes",
        "Content-Length": str(nbytes),
        "Content-Disposition": "attachment",  # a page of the same origin must not be made of it
        "X-Content-Type-Options": "nosniff",
    }
    if part is not None:
        headers["Content-Range"] = str(part)
    rest = files.read(record, 0 if part is None else part.first, nbytes)
    try:
        first = await anext(rest, b"")
    except PayloadLost:
        await files.find(owner, record.id)
        raise
    return StreamingResponse(_pieces(first, rest), 200 if part is None else 206, headers, media_type=media_type)


async def _pieces(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece
