"""`/v1/files`: files of the caller, kept for as long as was asked. Bodies stream in both directions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response
from fastapi import Request as HttpRequest
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import FormData, UploadFile
from starlette.types import Message, Receive, Scope
from typing_extensions import TypedDict

from omnibus.errors import InvalidRequest, RequestTooLarge
from omnibus.files.file_record import BATCH_OUTPUT, IMAGE_OUTPUT, FileRecord, checked_filename
from omnibus.frontdoor.access import RouteAccess
from omnibus.frontdoor.answers import json_response, list_response
from omnibus.frontdoor.context import Context
from omnibus.frontdoor.file_answers import file_response
from omnibus.frontdoor.forms import is_form
from omnibus.frontdoor.image_links import LINK_PATH
from omnibus.frontdoor.openapi_document import files_of
from omnibus.frontdoor.retention import lifetime
from omnibus.frontdoor.video_jobs.video_record import VIDEO_PURPOSE

router = APIRouter()
_BYTES = files_of("application/octet-stream")
_IMAGES = files_of("image/png", "image/jpeg", "image/webp")

PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
"""Purposes of an upload; files that the server makes have others."""
_LISTED = (*PURPOSES, BATCH_OUTPUT, VIDEO_PURPOSE, IMAGE_OUTPUT)
SHORTEST, LONGEST = 3600, 30 * 86_400
"""Seconds that a file may be asked to be kept."""
_FIELDS = ("file", "purpose", "expires_after[anchor]", "expires_after[seconds]")
_MULTIPART_ROOM = 1 << 20
"""Bytes of a form beside its file."""
_PIECE = 1 << 20
_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": list(PURPOSES)},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {"type": "integer", "minimum": SHORTEST, "maximum": LONGEST},
                    },
                }
            }
        },
    }
}


class FileQuery(BaseModel):
    """Which of the files are listed. A misspelt filter is refused: it would mean all files."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    after: str | None = None
    """The id of the file behind which the list begins."""
    limit: Annotated[int, Field(ge=1, le=10_000)] = 10_000
    order: Literal["asc", "desc"] = "desc"
    purpose: str | None = None


class FileObject(TypedDict):
    """A file."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    """Seconds since the epoch, as `expires_at`."""
    expires_at: int
    filename: str
    purpose: str
    status: Literal["processed"]


class FileList(TypedDict):
    object: Literal["list"]
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedFile(TypedDict):
    id: str
    object: Literal["file"]
    deleted: Literal[True]


@router.post("/v1/files", response_model=FileObject, openapi_extra={**RouteAccess.USER.stated, **_FORM})
async def upload_file(http: HttpRequest, context: Context) -> Response:
    """Store a file, sent as a form; it is kept for 30 days, or for as long as `expires_after` says."""
    most = context.options.max_file_bytes
    form = await _form(http, most)
    try:
        upload = form.get("file")
        if not isinstance(upload, UploadFile):
            raise InvalidRequest("send the file in the field `file` of a form (multipart/form-data)", param="file")
        _check_fields(form)
        if (upload.size or 0) > most:
            raise _too_large(most)
        record = await context.files.add(
            http.state.tenant, _pieces(upload), filename=checked_filename(upload.filename),
            purpose=_purpose(form), lifetime=_lifetime(http.scope, form, context.options.keep_files),
        )  # fmt: skip
    finally:
        await form.close()
    return await json_response(lambda: file_object(record))


@router.get("/v1/files", response_model=FileList, openapi_extra=RouteAccess.USER.stated)
async def list_files(http: HttpRequest, context: Context, query: Annotated[FileQuery, Query()]) -> Response:
    """The caller's files, the newest first unless `order` says otherwise.

    `after` may be of a file that was deleted meanwhile: ids are in the order of the uploads.
    """
    if query.purpose not in (None, *_LISTED):
        raise InvalidRequest(f"purpose must be one of {', '.join(_LISTED)}", param="purpose")
    page = await context.files.page(
        http.state.tenant,
        after=query.after,
        limit=query.limit,
        oldest_first=query.order == "asc",
        purpose=query.purpose,
    )
    return await list_response([file_object(record) for record in page.records], has_more=page.has_more)


@router.get("/v1/files/{file_id}", response_model=FileObject, openapi_extra=RouteAccess.USER.stated)
async def get_file(file_id: str, http: HttpRequest, context: Context) -> Response:
    """The description of a file."""
    record = await context.files.find(http.state.tenant, file_id)
    return await json_response(lambda: file_object(record))


@router.delete("/v1/files/{file_id}", response_model=DeletedFile, openapi_extra=RouteAccess.USER.stated)
async def delete_file(file_id: str, http: HttpRequest, context: Context) -> Response:
    """Remove a file at once."""
    await context.files.delete(http.state.tenant, file_id)
    answer = DeletedFile(id=file_id, object="file", deleted=True)
    return await json_response(lambda: answer)


@router.get(
    "/v1/files/{file_id}/content", response_class=Response, responses=_BYTES, openapi_extra=RouteAccess.USER.stated
)
async def get_content(file_id: str, http: HttpRequest, context: Context) -> Response:
    """The bytes of a file, or the part that the header `Range` names."""
    record = await context.files.find(http.state.tenant, file_id)
    return await file_response(context.files, http.state.tenant, record, http)


@router.get(LINK_PATH, response_class=Response, responses=_IMAGES, openapi_extra=RouteAccess.OPEN.stated)
async def get_linked_content(file_id: str, token: str, http: HttpRequest, context: Context) -> Response:
    """The bytes of a file by a link that an answer has, for whom it was given to; a part of them by the header `Range`."""
    link = await context.file_links.find(file_id, token)
    record = await context.files.find(link.tenant, link.file_id)
    return await file_response(context.files, link.tenant, record, http, link.media_type)


def file_object(record: FileRecord) -> FileObject:
    """A record as a body."""
    return FileObject(
        id=record.id, object="file", bytes=record.nbytes, created_at=int(record.created),
        expires_at=int(record.expires), filename=record.filename, purpose=record.purpose, status="processed",
    )  # fmt: skip


async def _form(http: HttpRequest, most: int) -> FormData:
    """The form; a large file of it is on disk."""
    if not is_form(http.headers.get("content-type", "")):
        raise InvalidRequest("send a form: Content-Type multipart/form-data, with the fields `file` and `purpose`")
    bounded = HttpRequest(http.scope, _bounded(http.receive, most))
    return await bounded.form(max_files=1, max_fields=16)


def _bounded(receive: Receive, most: int) -> Receive:
    left = most + _MULTIPART_ROOM

    async def bounded() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise _too_large(most)
        return message

    return bounded


async def _pieces(upload: UploadFile) -> AsyncIterator[bytes]:
    while piece := await upload.read(_PIECE):
        yield piece


def _too_large(most: int) -> RequestTooLarge:
    return RequestTooLarge(f"a file may have {most} bytes; OMNIBUS_MAX_FILE_BYTES is the bound", param="file")


def _check_fields(form: FormData) -> None:
    unknown = next((name for name in form if name not in _FIELDS), None)
    if unknown is not None:
        raise InvalidRequest(f"{unknown}: there is no such field; there are {', '.join(_FIELDS)}", param=unknown)


def _purpose(form: FormData) -> str:
    purpose = form.get("purpose")
    if purpose not in PURPOSES:
        raise InvalidRequest(f"purpose must be one of {', '.join(PURPOSES)}", param="purpose")
    return str(purpose)


def _lifetime(scope: Scope, form: FormData, usual: float) -> float:
    """Seconds that the file is kept."""
    anchor, seconds = form.get("expires_after[anchor]"), form.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return lifetime(scope, usual)
    if anchor != "created_at":
        raise InvalidRequest("expires_after[anchor] must be created_at", param="expires_after[anchor]")
    if not isinstance(seconds, str) or not seconds.isdecimal() or not SHORTEST <= int(seconds) <= LONGEST:
        raise InvalidRequest(
            f"expires_after[seconds] must be a whole number from {SHORTEST} to {LONGEST}",
            param="expires_after[seconds]",
        )
    return lifetime(scope, usual, float(seconds), param="expires_after[seconds]")
