"""The record of a stored file. Pure."""

from __future__ import annotations

import base64
import re
import secrets

import msgspec

from omnibus.errors import InvalidRequest, OmnibusError

_NO_TENANT = "_"
_PREFIX = "file-"
_ID = re.compile(rf"{_PREFIX}[0-9a-f]{{32}}", re.ASCII)
_LONGEST_NAME = 255
DEFAULT_LIFETIME = 30 * 86_400.0
"""Seconds that a file is kept where nobody says otherwise."""


class UnknownFile(OmnibusError, code="file_not_found", http_status=404):
    """No file of the caller has this id: it never had, it was deleted, or it has expired."""


class QuotaExceeded(OmnibusError, code="quota_exceeded", http_status=413):
    """A tenant's files would take more room than it has."""


class FileRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A file's description, beside its bytes."""

    id: str
    nbytes: int
    created: float
    """Seconds since the epoch, as `expires`."""
    expires: float
    filename: str
    purpose: str


def new_file_id(now: float) -> str:
    """An id; those of later files come later in the order of texts."""
    return f"{_PREFIX}{int(now * 1000):012x}{secrets.token_hex(10)}"


def is_file_id(text: str) -> bool:
    """Whether it has the form of an id; the file may be gone, or never have been."""
    return _ID.fullmatch(text) is not None


def record_key(tenant: str | None, file_id: str) -> str:
    """The key of a tenant's file; raises UnknownFile for what is no id."""
    digits = file_id.removeprefix(_PREFIX)
    if digits == file_id or not digits.isascii() or not digits.isalnum():
        raise UnknownFile(f"no file has the id {file_id!r}", param="file_id")
    return f"{tenant_token(tenant)}.{file_id}"


def tenant_token(tenant: str | None) -> str:
    """A tenant as a token of a key; None, a caller without a key, is nobody else."""
    if tenant is None:
        return _NO_TENANT
    return base64.urlsafe_b64encode(tenant.encode()).decode().rstrip("=") or "__"


def checked_filename(name: str | None) -> str:
    """The last part of a file's name; raises InvalidRequest when there is none, or a very long one."""
    last = (name or "").replace("\\", "/").rpartition("/")[2].strip()
    if not last or not last.isprintable() or len(last) > _LONGEST_NAME:
        raise InvalidRequest(f"the file needs a printable name of at most {_LONGEST_NAME} characters", param="file")
    return last
