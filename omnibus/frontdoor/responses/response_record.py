"""The record of a stored response; what was asked and answered is in its log. Pure."""

from __future__ import annotations

import hashlib

import msgspec

from omnibus.errors import OmnibusError, RequestConflict

PREFIX = "resp_"
"""Beginning of every response's id."""
_DIGITS = 32


class UnknownResponse(OmnibusError, code="response_not_found", http_status=404):
    """No stored response of the caller has this id: it never had, it was deleted, was not stored, or has expired."""


class ResponseNotReady(RequestConflict, code="response_not_ready"):
    """The response has not ended."""


class ResponseRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A stored response."""

    v: int = 1
    id: str
    owner: str | None
    """The tenant whose key made it; None where no keys are asked for."""
    rid: str
    """The id of its request."""
    pipeline: str
    created: float
    """Seconds since the epoch, by the server's clock, as all times."""
    expires: float
    fingerprint: str = ""
    """Digest of what was asked for, where the caller gave an idempotency key."""
    background: bool = False
    cancelling: bool = False
    """Its owner wants no more of it."""
    ended: float | None = None
    status: str = ""
    """completed, incomplete, failed or cancelled, once it has ended."""
    nbytes: int = 0
    """Bytes of its log: of what was asked for at first, and of all once it has ended."""


def response_id(rid: str) -> str:
    """The id of the response that a request is: the same for everybody who submits it."""
    return PREFIX + hashlib.sha256(rid.encode()).hexdigest()[:_DIGITS]


def unknown_response(given: str) -> UnknownResponse:
    """The error of an id that the caller has no response of."""
    return UnknownResponse(f"there is no response {given[:80]!r}", param="response_id")
