"""Events of webhooks: what is signed, what the `openai` package makes of it, and how long an attempt waits for the next."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import openai
import pytest

from omnibus.errors import InvalidRequest
from omnibus.webhooks.webhook_event import (
    EVENT_TYPES,
    KEPT,
    WebhookEndpoint,
    WebhookEvent,
    checked_events,
    checked_url,
    new_secret,
    pause_after,
    signed_headers,
)

pytestmark = pytest.mark.unit
CLIENT = openai.OpenAI(api_key="none")


@pytest.mark.parametrize("kind", EVENT_TYPES)
def test_every_event_is_unwrapped_by_the_openai_package(kind: str) -> None:
    event, secret, now = WebhookEvent.of(kind, "job_1", 1e9), new_secret(), time.time()
    body = event.body()
    found: Any = CLIENT.webhooks.unwrap(body, signed_headers(event, body, secret, now), secret=secret)
    assert (found.type, found.data.id, found.id, found.object) == (kind, "job_1", event.id, "event")
    if not kind.startswith("video."):  # which the package has no type of yet
        assert type(found).__name__ == f"{kind.title().replace('.', '')}WebhookEvent"


@pytest.mark.parametrize("changed", ["body", "secret", "id", "time"])
def test_a_message_is_refused_when_anything_of_it_is_another(changed: str) -> None:
    event, secret = WebhookEvent.of("batch.completed", "batch_1", 1e9), new_secret()
    body = event.body()
    headers = signed_headers(event, body, secret, time.time() - (600 if changed == "time" else 0))
    body = body.replace(b"batch_1", b"batch_2") if changed == "body" else body
    headers["webhook-id"] = "evt_other" if changed == "id" else headers["webhook-id"]
    with pytest.raises(openai.InvalidWebhookSignatureError):
        CLIENT.webhooks.unwrap(body, headers, secret=new_secret() if changed == "secret" else secret)


def test_an_end_has_the_same_id_whenever_it_is_announced() -> None:
    first, again = (
        WebhookEvent.of("video.completed", "video_1", 1.0),
        WebhookEvent.of("video.completed", "video_1", 2.0),
    )
    others = {WebhookEvent.of("video.failed", "video_1", 1.0).id, WebhookEvent.of("video.completed", "video_2", 1.0).id}
    assert first.id == again.id
    assert first.id not in others


def test_pauses_double_up_to_an_hour_for_days() -> None:
    age, attempts = 0.0, list[float]()
    while age <= KEPT:
        attempts.append(age)
        age += pause_after(age)
    assert attempts[:5] == [0.0, 2.0, 4.0, 8.0, 16.0]
    assert age - attempts[-1] == 3600.0
    assert 70 < len(attempts) < 100


def test_an_endpoint_wants_all_events_or_those_that_it_names() -> None:
    fields: Any = {"id": "wh_1", "tenant": None, "url": "https://a", "secret": new_secret(), "created": 0.0}
    every, some = WebhookEndpoint(**fields), WebhookEndpoint(**fields, events=("video.failed",))
    assert [one.wants("video.failed") for one in (every, some)] == [True, True]
    assert [one.wants("video.completed") for one in (every, some)] == [True, False]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(some), type=WebhookEndpoint) == some


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com",
        "ftp://a/",
        "https://",
        "https://u:p@a/",
        "https://a:port/",
        "https://a /",
        f"https://{'a' * 3000}",
    ],
)
def test_an_address_is_refused_when_it_cannot_be_called(url: str) -> None:
    with pytest.raises(InvalidRequest):
        checked_url(url)


def test_events_are_refused_when_one_is_unknown() -> None:
    assert checked_events(["video.failed", "video.failed"]) == ("video.failed",)
    with pytest.raises(InvalidRequest, match="there are batch"):
        checked_events(["batch.done"])
