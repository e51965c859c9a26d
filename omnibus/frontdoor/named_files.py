"""Files that a request names: by web addresses, and by the ids of files that the caller keeps here."""

from __future__ import annotations

from contextlib import suppress

from omnibus.errors import InvalidRequest, RequestTooLarge
from omnibus.files.file_record import UnknownFile
from omnibus.frontdoor.bodies import FileNamingBody
from omnibus.frontdoor.context import FrontDoorContext
from omnibus.frontdoor.outbound.web_files import Fetched, NamedFile, WebFile
from omnibus.wire.request import AudioPart, ImagePart, VideoPart


async def fetch_named(context: FrontDoorContext, tenant: str | None, body: FileNamingBody) -> None:
    """Have a body know the files that it names.

    Raises as `WebFiles.fetch`, and UnknownFile for an id that the tenant has no file of.
    """
    await context.web.fetch(body)
    stored = {one.url: one for one in body.named_files() if one.is_stored}
    if stored:
        body.keep_fetched({**body.fetched, **await _read(context, tenant, stored, body.fetched)})


async def _read(
    context: FrontDoorContext, tenant: str | None, stored: dict[str, NamedFile], fetched: Fetched
) -> Fetched:
    files, most = dict[str, WebFile](), context.options.max_body_bytes
    left = most - sum(len(one.data) for one in fetched.values())
    for file_id, named in stored.items():
        try:
            record = await context.files.find(tenant, file_id)
        except UnknownFile as error:
            error.param = named.param
            raise
        left -= record.nbytes
        if left < 0:
            raise RequestTooLarge(f"the files of a request may have {most} bytes together", param=named.param)
        data = await context.files.read_whole(record)
        files[file_id] = WebFile(data, "")
    return files


def file_part(data: bytes, argument: str | None, *, param: str) -> ImagePart | AudioPart | VideoPart:
    """A file as the part of a message that its content makes it; raises InvalidRequest for any but pictures, sound and video."""
    from omnibus.media import pictures, sound, video  # noqa: PLC0415 only requests with files load its libraries

    with suppress(InvalidRequest):
        return ImagePart(data=data, media_type=pictures.media_type(data), argument=argument)
    with suppress(InvalidRequest):
        video.length(data)
        return VideoPart(data=data, media_type=video.media_type(data), argument=argument)
    with suppress(InvalidRequest):
        return AudioPart(data=data, media_type=sound.media_type(data), argument=argument)
    raise InvalidRequest("the file is no picture, sound or video", param=param)
