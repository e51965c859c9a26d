"""Responses in the background: whatever dies, none is lost, and no event of one is missing or twice for who reads it."""

from __future__ import annotations

import asyncio

from openai import AsyncOpenAI
from openai.types.responses import ResponseStreamEvent

from tests.chaos.nemeses import processes
from tests.chaos.row import Battle
from tests.support.response_reading import check_events, read_on

READERS = 6
TURNS = 4
"""Responses that a reader has, one after the other, each going on from the one before."""
WITHIN = 120.0
"""Seconds for one response, on a busy machine."""


async def break_responses(battle: Battle) -> None:
    """Kill front door, orchestrators, a worker and nats-server, in any order, while responses are made and read."""
    acts = battle.random.sample(processes.process_deaths(), len(processes.process_deaths()))
    async with asyncio.TaskGroup() as group:
        readers = [group.create_task(_converse(battle, number), name=f"reader-{number}") for number in range(READERS)]
        for act in acts:
            await act(battle)
            await battle.cluster.wait_up()
        await asyncio.wait(readers, timeout=TURNS * WITHIN)


async def _converse(battle: Battle, number: int) -> None:
    """Hold one conversation, each turn in the background and read to its end."""
    name = f"reader-{battle.random.random()}"
    async with AsyncOpenAI(base_url=f"{battle.cluster.url}/v1", api_key="any", max_retries=30, timeout=30.0) as client:
        before: str | None = None
        for turn in range(TURNS):
            said = f"reader {number} turn {turn}"
            response = await client.responses.create(
                model=battle.cluster.spec.name, input=said, background=True, previous_response_id=before,
                extra_headers={"Idempotency-Key": f"{name}-{turn}"},
            )  # fmt: skip
            events: list[ResponseStreamEvent] = []
            await read_on(client, response.id, events, WITHIN)
            end = await client.responses.retrieve(response.id)
            check_events(events, end)
            assert end.output_text.endswith(said), (said, end.output_text)
            before = response.id
