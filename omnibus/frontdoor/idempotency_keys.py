"""Idempotency keys: by one, a caller may send the same call again and gets what the first one made."""

from __future__ import annotations

import hashlib

from fastapi import Request as HttpRequest

from omnibus.errors import InvalidRequest, RequestConflict
from omnibus.frontdoor.headers import sent_header

IDEMPOTENCY_KEY = "Idempotency-Key"
MAX_KEY_LENGTH = 255
_RID_LENGTH = 40


def request_key(http: HttpRequest, tenant: str, pipeline: str) -> str:
    """The token of the idempotency key that a caller sent; empty without one. Raises InvalidRequest for one of a wrong length."""
    key = sent_header(http.scope, "idempotency-key")
    if key is None:
        return ""
    if not 0 < len(key) <= MAX_KEY_LENGTH:
        raise InvalidRequest(f"an idempotency key has 1 to {MAX_KEY_LENGTH} characters", param=IDEMPOTENCY_KEY)
    return keyed_rid(tenant, pipeline, key)


def keyed_rid(tenant: str, pipeline: str, key: str) -> str:
    """The id of every request that a caller sends with this idempotency key.

    A hash, so that a caller's words never become a subject, and so that callers cannot reach each other's requests:
    the tenant, which stands for the API key, is part of it. The pipeline is, because each has a ledger of its own.
    """
    # Lengths go first: ("a", "bc") and ("ab", "c") must differ.
    parts = (tenant, pipeline, key)
    text = "".join(f"{len(part)}:{part}" for part in parts)
    return hashlib.sha256(text.encode()).hexdigest()[:_RID_LENGTH]


def key_conflict(what: str) -> RequestConflict:
    """The error of a key that a caller sends with another body than before; `what` is the kind of what it made."""
    return RequestConflict(f"this idempotency key was used for another {what}", param=IDEMPOTENCY_KEY)
