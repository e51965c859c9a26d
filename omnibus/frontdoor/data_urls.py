"""Files inside JSON: data URLs and base64, both ways."""

from __future__ import annotations

import base64
import binascii
import mimetypes
import re

from omnibus.errors import InvalidRequest
from omnibus.frontdoor.outbound.web_files import Fetched, is_web_address

_DATA_URL = re.compile(r"data:(?P<media>[A-Za-z0-9.+-]+/[A-Za-z0-9.+-]+)?(?P<params>(;[^;,]*)*),", re.ASCII)
_HEAD_LENGTH = 256
"""Where the comma of a data URL must have come."""
_AUDIO_TYPES = {"mp3": "audio/mpeg", "opus": "audio/ogg", "ogg": "audio/ogg"}


def file_at(url: str, family: str, fetched: Fetched, *, param: str) -> tuple[bytes, str | None]:
    """The bytes of a file that was fetched from a web address, or of a data URL, and its media type, None where its server
    says no such one; raises InvalidRequest."""
    file = fetched.get(url)
    if file is None:
        return from_data_url(url, family, param=param)
    return file.data, file.media_type if file.media_type.startswith(f"{family}/") else None


def from_data_url(url: str, family: str | None, *, param: str) -> tuple[bytes, str]:
    """The bytes and the media type of a `data:<family>/…;base64,…` URL; raises InvalidRequest, also for web addresses.

    Without a `family`, one of any.
    """
    head = _DATA_URL.match(url[:_HEAD_LENGTH])
    if head is None:
        what = "a web address" if is_web_address(url) else "something else"
        message = f"only data: URLs are accepted here, such as data:{family or 'image'}/…;base64,…, not {what}"
        raise InvalidRequest(message, param=param)
    media_type = head["media"] or "text/plain"
    if family is not None and not media_type.startswith(f"{family}/"):
        raise InvalidRequest(f"the data URL holds {media_type}, not a file of type {family}", param=param)
    if not head["params"].endswith(";base64"):
        raise InvalidRequest("the data URL must be base64", param=param)
    return from_base64(url[head.end() :], param=param), media_type


def from_base64(text: str, *, param: str) -> bytes:
    """The bytes; raises InvalidRequest for what is not base64, or empty."""
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"not valid base64: {error}", param=param) from error
    if not data:
        raise InvalidRequest("the file is empty", param=param)
    return data


def to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def to_data_url(data: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{to_base64(data)}"


def audio_type(audio_format: str) -> str:
    """The media type of a format as OpenAI names it."""
    return _AUDIO_TYPES.get(audio_format, f"audio/{audio_format}")


def media_type_of(name: str) -> str:
    """The media type of a file, by its name."""
    return mimetypes.guess_type(name)[0] or "application/octet-stream"


def file_name(stem: str, media_type: str) -> str:
    return f"{stem}{mimetypes.guess_extension(media_type) or '.bin'}"
