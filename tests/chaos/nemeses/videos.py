"""Videos as jobs, and the webhooks of their ends: whatever dies, each is made once, is whole, and is announced."""

from __future__ import annotations

import asyncio
from collections import defaultdict

from aiohttp import web
from openai import AsyncOpenAI

from omnibus.webhooks.webhook_store import WebhookStore
from tests.chaos.nemeses import processes
from tests.chaos.row import Battle
from tests.support.filmed_text import text_of
from tests.support.waiting import eventually
from tests.support.web_server import web_server

MAKERS = 6
EACH = 4
"""Videos of a maker, one after the other."""
WITHIN = 120.0
"""Seconds for one video, on a busy machine; for its webhook as long again, whose sender may have died with it in hand."""


async def break_videos(battle: Battle) -> None:
    """Kill painter, camera, front door, orchestrators and nats-server, two of them at once, while videos are made."""
    announced = defaultdict[str, set[str]](set)

    async def take(request: web.Request) -> web.StreamResponse:
        event = await request.json()
        announced[event["data"]["id"]].add(f"{event['type']} {request.headers['webhook-id']}")
        return web.Response(status=204)

    async with web_server({"/hook": take}) as receiver:
        await WebhookStore(battle.cluster.connection).add(None, f"{receiver.url}/hook")
        async with asyncio.TaskGroup() as group:
            makers = [group.create_task(_make(battle, number), name=f"maker-{number}") for number in range(MAKERS)]
            await processes.break_films(battle)
        made = {video_id for maker in makers for video_id in maker.result()}
        assert len(made) == MAKERS * EACH, "a key became two videos"
        await eventually(lambda: made <= announced.keys(), WITHIN, what="every end is announced")
    for video_id in made:
        (event,) = announced[video_id]
        assert event.startswith("video.completed evt_"), (video_id, event)


async def _make(battle: Battle, number: int) -> list[str]:
    """Have videos made, one after the other; what a death takes from the caller is sent again under its key."""
    made, nonce = list[str](), battle.random.random()
    async with AsyncOpenAI(base_url=f"{battle.cluster.url}/v1", api_key="any", max_retries=60, timeout=30.0) as client:
        for turn in range(EACH):
            prompt = f"maker {number} turn {turn}"
            key = {"Idempotency-Key": f"{nonce}-{turn}"}
            begun = await client.videos.create(model=battle.cluster.spec.name, prompt=prompt, extra_headers=key)
            again = await client.videos.create(model=battle.cluster.spec.name, prompt=prompt, extra_headers=key)
            assert begun.id == again.id, "a key became two videos"
            async with asyncio.timeout(WITHIN):
                video = await client.videos.poll(begun.id)
            assert video.status == "completed", (video.error, prompt)
            film = (await client.videos.download_content(begun.id)).content
            assert text_of(film).split()[: len(prompt.split())] == prompt.split(), (prompt, text_of(film))
            made.append(begun.id)
    return made
