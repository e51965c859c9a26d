"""Stored files as answers: whole, or the part that the header `Range` names, and never whole in memory."""

from __future__ import annotations

from fastapi import Request as HttpRequest
from starlette.responses import StreamingResponse

from omnibus.files.file_record import FileRecord
from omnibus.files.file_store import FileStore
from omnibus.frontdoor.byte_range import requested_range


def file_response(
    files: FileStore, record: FileRecord, http: HttpRequest, media_type: str = "application/octet-stream"
) -> StreamingResponse:
    """The bytes of a file, or a part of them; raises RangeNotSatisfiable."""
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
    body = files.read(record, 0 if part is None else part.first, nbytes)
    return StreamingResponse(body, 200 if part is None else 206, headers, media_type=media_type)
