"""Who asks, and under which id: pure, but for the random ids."""

from __future__ import annotations

import hashlib
import hmac
import uuid
from collections.abc import Iterable

IDEMPOTENCY_KEY = "Idempotency-Key"
MAX_KEY_LENGTH = 255
_RID_LENGTH = 40


def fresh_rid() -> str:
    """An id that nobody has had."""
    return uuid.uuid4().hex


def keyed_rid(api_key: str, tenant: str, pipeline: str, key: str) -> str:
    """The id of every request that a caller sends with this idempotency key.

    A hash, so that a caller's words never become a subject, and so that callers cannot reach each other's requests:
    the API key and the tenant are part of it. The pipeline is, because each pipeline has a ledger of its own.
    """
    # Lengths go first: ("a", "bc") and ("ab", "c") must differ.
    parts = (api_key, tenant, pipeline, key)
    text = "".join(f"{len(part)}:{part}" for part in parts)
    return hashlib.sha256(text.encode()).hexdigest()[:_RID_LENGTH]


def key_tenant(api_key: str) -> str:
    """The tenant that an API key stands for. A hash: what is kept of a request must not tell the key."""
    return f"key-{hashlib.sha256(api_key.encode()).hexdigest()[:16]}"


def bearer(authorization: str | None) -> str:
    """The token of an `Authorization: Bearer …` header, "" when there is none."""
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def is_known_key(token: str, api_keys: Iterable[str]) -> bool:
    """Whether the token is one of the keys; takes as long for a wrong one as for a right one."""
    given = hashlib.sha256(token.encode()).digest()
    matches = [hmac.compare_digest(given, hashlib.sha256(key.encode()).digest()) for key in api_keys]
    return any(matches)
