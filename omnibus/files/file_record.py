"""The record of a stored file. Pure."""

from __future__ import annotations

import msgspec

from omnibus.errors import InvalidRequest, OmnibusError

PREFIX = "file-"
"""Beginning of every file's id."""
_LONGEST_NAME = 255
BATCH_OUTPUT = "batch_output"
"""Purpose of the files that a batch makes."""
IMAGE_OUTPUT = "image"
"""Purpose of the files that hold images which an answer links to."""
DEFAULT_LIFETIME = 30 * 86_400.0
"""Seconds that a file is kept where nobody says otherwise."""


class UnknownFile(OmnibusError, code="file_not_found", http_status=404):
    """No file of the caller has this id: it never had, it was deleted, or it has expired."""


class QuotaExceeded(OmnibusError, code="quota_exceeded", http_status=413):
    """A tenant's files would take more room than it has."""


class FileRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A file's description, beside its bytes."""

    id: str
    nbytes: int
    created: float
    """Seconds since the epoch, as `expires`."""
    expires: float
    filename: str
    purpose: str
    in_storage: bool = False
    """Whether its bytes are in the operator's storage, and not in the broker."""


def unknown_file(file_id: str) -> UnknownFile:
    """The error of an id that the caller has no file of."""
    return UnknownFile(f"there is no file {file_id[:80]!r}", param="file_id")


def checked_filename(name: str | None) -> str:
    """The last part of a file's name; raises InvalidRequest when there is none, or a very long one."""
    last = (name or "").replace("\\", "/").rpartition("/")[2].strip()
    if not last or not last.isprintable() or len(last) > _LONGEST_NAME:
        raise InvalidRequest(f"the file needs a printable name of at most {_LONGEST_NAME} characters", param="file")
    return last
