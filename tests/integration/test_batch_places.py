"""Batches under idempotency keys, and their places in a front door."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from omnibus.broker.connection import Connection
from omnibus.frontdoor.batching import batch_drive, batch_runner
from omnibus.frontdoor.context import Options
from tests.support.batches import CHAT, answers, begun, chat, ended
from tests.support.front import front, omni_sim

pytestmark = pytest.mark.integration


async def test_a_key_is_one_batch_however_often_it_is_sent(connection: Connection, pipeline: str) -> None:
    async with front(connection, omni_sim(pipeline), Options(api_keys=(pipeline,)), batches=True) as door:
        await _send_with_keys(door.openai, pipeline)


async def _send_with_keys(client: openai.AsyncOpenAI, model: str) -> None:
    lines = [chat(model, "a", "hi")]
    first = await begun(client, lines, extra_headers={"Idempotency-Key": "nightly"})
    body: Any = {"input_file_id": first.input_file_id, "endpoint": CHAT, "completion_window": "24h"}
    again, at_once = await asyncio.gather(
        *(client.batches.create(**body, extra_headers={"Idempotency-Key": "nightly"}) for _ in range(2))
    )
    assert first.id == again.id == at_once.id
    with pytest.raises(openai.ConflictError) as refusal:
        await client.batches.create(**{**body, "metadata": {"a": "b"}}, extra_headers={"Idempotency-Key": "nightly"})
    assert refusal.value.code == "request_conflict"
    other = await client.batches.create(**body, extra_headers={"Idempotency-Key": "weekly"})
    both = [one.id async for one in client.batches.list()]
    assert sorted(both) == sorted([first.id, other.id])
    assert (await ended(client, first)).status == "completed"


async def test_a_batch_whose_model_has_no_replica_leaves_its_place_to_others(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_runner, "MOST_BATCHES", 1)
    monkeypatch.setattr(batch_runner, "_IDLE_LOOK", 0.3)
    monkeypatch.setattr(batch_drive, "IDLE", 0.5)
    idle = omni_sim(f"{pipeline}-idle")
    options = Options(api_keys=(pipeline,))
    async with front(connection, omni_sim(pipeline), options, batches=True, idle=(idle,)) as door:
        stuck = await begun(door.openai, [chat(idle.name, "a", "hi")])
        behind = await ended(door.openai, await begun(door.openai, [chat(pipeline, "b", "hi")]))
        assert behind.status == "completed"
        assert (await door.openai.batches.retrieve(stuck.id)).status == "in_progress"
        await door.openai.batches.cancel(stuck.id)
        assert (await ended(door.openai, stuck)).status == "cancelled"
        assert [
            line["error"]["code"] for line in (await answers(door.openai, await ended(door.openai, stuck))).bad
        ] == ["batch_cancelled"]
