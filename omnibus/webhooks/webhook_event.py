"""Events, the addresses that they go to, and the signed message that they become (standardwebhooks.com). Pure."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Iterable
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from omnibus.errors import InvalidRequest, OmnibusError

PREFIX = "wh_"
"""Beginning of an endpoint's id."""
_SECRET_PREFIX = "whsec_"  # noqa: S105 what the secrets of Standard Webhooks begin with
_SECRET_BYTES = 32
_LONGEST_URL = 2048
SHORTEST_PAUSE, LONGEST_PAUSE = 2.0, 3600.0
"""Seconds between two attempts, at first and at most."""
KEPT = 3 * 86_400.0
"""Seconds after an event in which its delivery is attempted."""
EventType = Literal[
    "batch.completed", "batch.failed", "batch.expired", "batch.cancelled",
    "video.completed", "video.failed",
    "response.completed", "response.failed", "response.incomplete", "response.cancelled",
]  # fmt: skip
EVENT_TYPES: tuple[str, ...] = EventType.__args__  # type: ignore[attr-defined]


class UnknownWebhook(OmnibusError, code="webhook_not_found", http_status=404):
    """No endpoint of webhooks has this id."""


class WebhookEndpoint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An address that is called when something has happened to a job of its tenant."""

    v: int = 1
    id: str
    tenant: str | None
    url: str
    secret: str
    """The key that messages to it are signed with."""
    events: tuple[str, ...] = ()
    """The types that it wants; empty: all."""
    created: float

    def wants(self, kind: str) -> bool:
        """Whether events of this type go to it."""
        return not self.events or kind in self.events


class WebhookEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A job has come to its end."""

    id: str
    """The same whenever the same end is announced: receivers may drop one that they know."""
    type: str
    data_id: str
    """The id of the job."""
    created: int
    """Seconds since the epoch."""

    @classmethod
    def of(cls, kind: str, data_id: str, created: float) -> WebhookEvent:
        """The event of one end; its id is made of the job's and the type."""
        digest = hashlib.sha256(f"{kind} {data_id}".encode()).hexdigest()
        return cls(id=f"evt_{digest[:32]}", type=kind, data_id=data_id, created=int(created))

    def body(self) -> bytes:
        """The message as JSON, in OpenAI's shape."""
        return msgspec.json.encode(
            {
                "id": self.id,
                "object": "event",
                "created_at": self.created,
                "type": self.type,
                "data": {"id": self.data_id},
            }
        )


def new_secret() -> str:
    """A secret to sign with."""
    return _SECRET_PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def signed_headers(event: WebhookEvent, body: bytes, secret: str, now: float) -> dict[str, str]:
    """The headers of an attempt that is made now."""
    stamp = str(int(now))
    key = base64.b64decode(secret.removeprefix(_SECRET_PREFIX))
    signature = hmac.new(key, f"{event.id}.{stamp}.".encode() + body, hashlib.sha256).digest()
    return {
        "webhook-id": event.id,
        "webhook-timestamp": stamp,
        "webhook-signature": f"v1,{base64.b64encode(signature).decode()}",
        "Content-Type": "application/json",
    }


def pause_after(age: float) -> float:
    """Seconds until the next attempt at an event of this age: as long as it has waited already, so that pauses double."""
    return min(max(age, SHORTEST_PAUSE), LONGEST_PAUSE)


def checked_url(url: str) -> str:
    """The address; raises InvalidRequest for one that cannot be called."""
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc
        _ = parts.port
    except ValueError:
        is_good = False
    if not is_good or not url.isprintable() or " " in url or len(url) > _LONGEST_URL:
        raise InvalidRequest(
            "a webhook's address begins with https:// or http://, without user and password", param="url"
        )
    return url


def checked_events(events: Iterable[str]) -> tuple[str, ...]:
    """The types, each once; raises InvalidRequest for an unknown one."""
    wanted = tuple(dict.fromkeys(events))
    if unknown := [kind for kind in wanted if kind not in EVENT_TYPES]:
        raise InvalidRequest(f"there is no event {unknown[0]!r}; there are {', '.join(EVENT_TYPES)}", param="events")
    return wanted
