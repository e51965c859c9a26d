"""Webhooks: sent when a job has ended, again until they are taken, and read by the unmodified `openai` package."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import openai
import pytest
import pytest_asyncio
from aiohttp import web
from structlog.testing import capture_logs

from omnibus.broker.connection import Connection, connect
from omnibus.broker.embedded import EmbeddedServer
from omnibus.broker.layout import ensure_layout, layout_of
from omnibus.frontdoor.api_keys import read_setting
from omnibus.frontdoor.context import Options
from omnibus.frontdoor.outbound import webhook_sender
from omnibus.frontdoor.outbound.addresses import AddressRule
from omnibus.frontdoor.outbound.webhook_sender import WebhookSender
from omnibus.pipeline.spec import PipelineSpec
from omnibus.webhooks import webhook_event
from omnibus.webhooks.webhook_event import UnknownWebhook
from omnibus.webhooks.webhook_store import WebhookStore
from tests.support.batches import begun, chat, ended
from tests.support.filming_stages import UNFILMABLE, films
from tests.support.front import front, omni_sim
from tests.support.waiting import eventually
from tests.support.web_server import WebServer, redirect, web_server

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning"),
]
LOOPBACK = AddressRule.of(["127.0.0.0/8"])


@dataclass
class Receiver:
    """A receiver of webhooks, that answers with these statuses first, and then with 204."""

    statuses: list[int] = field(default_factory=list)
    received: list[tuple[bytes, Mapping[str, str]]] = field(default_factory=list)
    held: asyncio.Event | None = None
    server: WebServer | None = None

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.received.append((await request.read(), dict(request.headers)))
        if self.held is not None:
            await self.held.wait()
        return web.Response(status=self.statuses.pop(0) if self.statuses else 204)

    @property
    def url(self) -> str:
        assert self.server is not None
        return f"{self.server.url}/hook"

    @property
    def ids(self) -> list[str]:
        return [headers["webhook-id"] for _, headers in self.received]

    async def event(self, secret: str, number: int = 0) -> Any:
        """An event that was received, as the `openai` package has it."""
        await eventually(lambda: len(self.received) > number, 20.0, what="the webhook comes")
        body, headers = self.received[number]
        return openai.OpenAI(api_key="none").webhooks.unwrap(body, headers, secret=secret)


@pytest_asyncio.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    async with web_server({"/hook": made.answer, "/elsewhere": redirect("/hook")}) as made.server:
        yield made


@pytest_asyncio.fixture
async def store(connection: Connection, pipeline: str) -> WebhookStore:
    """Endpoints of tenants that are named as the pipeline is."""
    await ensure_layout(connection, layout_of(PipelineSpec(name=pipeline, stages=())))
    return WebhookStore(connection)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow each other at once."""
    monkeypatch.setattr(webhook_event, "SHORTEST_PAUSE", 0.05)
    monkeypatch.setattr(webhook_event, "LONGEST_PAUSE", 0.05)


async def test_the_ends_of_batches_and_videos_are_sent_to_their_owner_alone(
    connection: Connection, pipeline: str, receiver: Receiver, store: WebhookStore
) -> None:
    options = Options(api_keys=(pipeline,), allowed_networks=("127.0.0.0/8",))
    tenant = read_setting(pipeline).tenant
    mine = await store.add(tenant, receiver.url)
    await store.add(f"{tenant}-other", receiver.url)
    await store.add(tenant, receiver.url, ["response.completed"])
    async with (
        front(connection, omni_sim(pipeline), options, batches=True, webhooks=True) as door,
        front(connection, films(f"{pipeline}-films"), options, videos=True) as camera,
    ):
        batch = await ended(door.openai, await begun(door.openai, [chat(pipeline, "a", "hi")]))
        event = await receiver.event(mine.secret)
        assert (event.type, event.data.id, batch.status) == ("batch.completed", batch.id, "completed")

        made = await camera.openai.videos.create_and_poll(prompt="a red circle", poll_interval_ms=50)
        failed = await camera.openai.videos.create(prompt=UNFILMABLE)
        events = [await receiver.event(mine.secret, number) for number in (1, 2)]
    found = {(one.type, one.data.id) for one in events}
    assert found == {("video.completed", made.id), ("video.failed", failed.id)}
    assert len(receiver.received) == 3


async def test_the_end_of_each_response_in_the_background_is_sent_once(
    connection: Connection, pipeline: str, receiver: Receiver, store: WebhookStore
) -> None:
    options = Options(api_keys=(pipeline,), allowed_networks=("127.0.0.0/8",))
    mine = await store.add(read_setting(pipeline).tenant, receiver.url)
    async with front(connection, omni_sim(pipeline), options, responses=True, webhooks=True) as door:
        responses, expected = door.openai.responses, dict[str, str]()
        for end, writer in (
            ("completed", {}),
            ("failed", {"reject_on": {"rid": "."}}),
            ("cancelled", {"tokens": 3000, "token_rate": 30.0}),
        ):
            fields = {"sampling_params": {"writer": writer}} if writer else {}
            made = await responses.create(model=pipeline, input="one two", background=True, extra_body=fields)
            if end == "cancelled":
                await responses.cancel(made.id)
            expected[made.id] = f"response.{end}"
            event = await receiver.event(mine.secret, len(expected) - 1)
            assert (event.type, event.data.id) == (expected[made.id], made.id)
            assert (await responses.retrieve(made.id)).status == end, "it has ended when it is said to have"
        whole = await responses.create(model=pipeline, input="one")
        assert whole.status == "completed", "its caller has the end, and no webhook"
    assert len(receiver.received) == len(expected)


async def test_a_webhook_is_sent_again_with_the_same_id_until_it_is_taken(
    connection: Connection, pipeline: str, receiver: Receiver, store: WebhookStore, quick: None
) -> None:
    receiver.statuses = [500, 404, 302]
    endpoint = await store.add(pipeline, receiver.url)
    async with WebhookSender(connection, LOOPBACK):
        await store.notify(pipeline, "video.completed", f"video_{pipeline}")
        event = await receiver.event(endpoint.secret, 3)
        assert event.data.id == f"video_{pipeline}"
        await store.notify(
            pipeline, "batch.failed", f"batch_{pipeline}"
        )  # the queue is in order: it comes behind a fourth
        await receiver.event(endpoint.secret, 4)
    assert len(set(receiver.ids[:4])) == 1
    assert receiver.ids[4] != receiver.ids[0]


async def test_a_webhook_is_sent_by_another_when_its_sender_stops_in_the_middle(
    connection: Connection, pipeline: str, receiver: Receiver, store: WebhookStore
) -> None:
    receiver.held = asyncio.Event()
    endpoint = await store.add(pipeline, receiver.url)
    first = WebhookSender(connection, LOOPBACK)
    await first.__aenter__()
    await store.notify(pipeline, "video.completed", f"video_{pipeline}")
    await receiver.event(endpoint.secret)
    await first.__aexit__()  # in the middle of an attempt, which nobody has acknowledged
    receiver.held = None
    async with WebhookSender(connection, LOOPBACK):
        await receiver.event(endpoint.secret, 1)
    assert receiver.ids[0] == receiver.ids[1]


async def test_an_end_is_announced_when_its_runner_died_before_it_could(
    connection: Connection, pipeline: str, receiver: Receiver, store: WebhookStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Options(api_keys=(pipeline,), allowed_networks=("127.0.0.0/8",))
    endpoint = await store.add(read_setting(pipeline).tenant, receiver.url)
    notified, real = list[str](), WebhookStore.notify

    async def failing_once(self: WebhookStore, tenant: str | None, kind: Any, data_id: str) -> None:
        notified.append(data_id)
        if len(notified) == 1:
            raise RuntimeError("died")
        await real(self, tenant, kind, data_id)

    monkeypatch.setattr(WebhookStore, "notify", failing_once)
    async with front(connection, films(pipeline), options, videos=True, webhooks=True) as door:
        made = await door.openai.videos.create_and_poll(prompt="a red circle", poll_interval_ms=50)
        event = await receiver.event(endpoint.secret)
    assert (event.type, event.data.id, len(notified)) == ("video.completed", made.id, 2)


async def test_nothing_is_sent_to_private_addresses_by_redirects_or_to_what_was_removed(
    connection: Connection, pipeline: str, receiver: Receiver, store: WebhookStore, quick: None
) -> None:
    assert receiver.server is not None
    removed = await store.add(pipeline, receiver.url)
    await store.notify(pipeline, "batch.completed", f"batch_{pipeline}")
    await store.remove(removed.id)
    await store.add(pipeline, f"{receiver.server.url}/elsewhere")
    await store.notify(pipeline, "video.failed", f"video_{pipeline}")
    refused = connection.metrics.webhooks.labels("refused")._value.get
    before = refused()
    with capture_logs() as lines:
        async with WebhookSender(connection, AddressRule()):
            await eventually(lambda: refused() > before + 2, what="attempts are refused")
        (reason,) = {line["status"] for line in lines if line["event"] == "webhook.refused"}
        assert "not a public one" in reason
        assert "OMNIBUS_ALLOWED_NETWORKS" in reason
        assert receiver.server.asked == []
    async with WebhookSender(connection, LOOPBACK):
        await eventually(lambda: len(receiver.server.asked) > 2, what="redirects are tried")  # type: ignore[union-attr]
    assert set(receiver.server.asked) == {"/elsewhere"}
    await store.remove(f"{receiver.server.url}/elsewhere")
    with pytest.raises(UnknownWebhook):
        await store.remove(removed.id)


async def test_an_endpoint_that_is_slow_holds_up_no_other(
    connection: Connection, pipeline: str, receiver: Receiver, store: WebhookStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook_sender, "MOST_AT_ONCE", 6)
    monkeypatch.setattr(webhook_sender, "MOST_TO_ONE", 2)
    slow = Receiver(held=asyncio.Event())
    async with web_server({"/hook": slow.answer}) as slow.server:
        await store.add(pipeline, slow.url)
        for number in range(12):
            await store.notify(pipeline, "batch.completed", f"batch_{pipeline}_{number}")
        other = await store.add(f"{pipeline}-other", receiver.url)
        await store.notify(f"{pipeline}-other", "video.completed", f"video_{pipeline}")
        async with WebhookSender(connection, LOOPBACK):
            event = await receiver.event(other.secret)
            assert slow.held is not None
            slow.held.set()
    assert event.type == "video.completed"


async def test_jobs_end_when_there_is_no_store_of_webhooks(own_server: EmbeddedServer) -> None:
    async with connect(own_server.url, name="test", role="test") as connection:
        await WebhookStore(connection).notify(None, "batch.completed", "batch_1")
