"""`omnibus webhooks`, as an operator uses it."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest
import pytest_asyncio

from omnibus.broker.connection import Connection
from omnibus.broker.embedded import EmbeddedServer
from omnibus.broker.layout import ensure_layout, layout_of
from omnibus.frontdoor.api_keys import read_setting
from omnibus.pipeline.spec import PipelineSpec
from omnibus.webhooks.webhook_store import WebhookStore
from tests.support.served import omnibus

pytestmark = pytest.mark.integration


@pytest_asyncio.fixture
async def store(connection: Connection, pipeline: str) -> WebhookStore:
    await ensure_layout(connection, layout_of(PipelineSpec(name=pipeline, stages=())))
    return WebhookStore(connection)


async def test_an_operator_adds_lists_and_removes_webhooks(
    nats_server: EmbeddedServer, store: WebhookStore, pipeline: str, tmp_path: Path
) -> None:
    file, url = ("--api-keys-file", str(tmp_path / "keys.json")), f"https://{pipeline}.example/hook"

    async def run(*words: str) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(omnibus, *words, nats=nats_server.url)

    key = (await run("keys", "add", "mobile", *file)).stdout.strip()
    added = await run("webhooks", "add", url, "--key", "mobile", "--events", "video.failed, batch.failed", *file)
    (endpoint,) = [one for one in await store.of_all() if one.url == url]
    assert (endpoint.tenant, endpoint.events) == (read_setting(key).tenant, ("video.failed", "batch.failed"))
    assert (added.stdout, endpoint.id in added.stderr) == (f"{endpoint.secret}\n", True)
    listed = await run("webhooks", "list", *file)
    (line,) = [line for line in listed.stdout.splitlines() if url in line]
    assert line.split()[:3] == [endpoint.id, url, "mobile"]
    assert endpoint.secret not in listed.stdout + (await run("webhooks", "list", "--json")).stdout
    wrong = await run("webhooks", "add", "example.com")
    nobody = await run("webhooks", "add", url, "--key", "nobody", *file)
    assert (wrong.returncode, nobody.returncode, "keys list" in nobody.stderr) == (2, 2, True)
    assert endpoint.id in (await run("webhooks", "remove", url)).stdout
    assert (await run("webhooks", "remove", endpoint.id)).returncode != 0
