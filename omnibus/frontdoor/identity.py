"""Ids of requests: random ones, and those of idempotency keys."""

from __future__ import annotations

import hashlib
import uuid

IDEMPOTENCY_KEY = "Idempotency-Key"
MAX_KEY_LENGTH = 255
_RID_LENGTH = 40


def fresh_rid() -> str:
    """An id that nobody has had."""
    return uuid.uuid4().hex


def keyed_rid(tenant: str, pipeline: str, key: str) -> str:
    """The id of every request that a caller sends with this idempotency key.

    A hash, so that a caller's words never become a subject, and so that callers cannot reach each other's requests:
    the tenant, which stands for the API key, is part of it. The pipeline is, because each has a ledger of its own.
    """
    # Lengths go first: ("a", "bc") and ("ab", "c") must differ.
    parts = (tenant, pipeline, key)
    text = "".join(f"{len(part)}:{part}" for part in parts)
    return hashlib.sha256(text.encode()).hexdigest()[:_RID_LENGTH]
