"""A batch in flight, and files on their way in: whatever dies, every line is answered once, and every file is whole."""

from __future__ import annotations

import asyncio
from functools import partial

from openai import AsyncOpenAI

from tests.chaos.nemeses import processes
from tests.chaos.row import Battle
from tests.support.batch_deaths import check_answers, through_deaths

LINES = 160
FILES = 8
"""Files that are sent while things die."""
FILE_BYTES = 6 << 20
"""More than one window of an object."""
WITHIN = 180.0
"""Seconds for the whole batch, on a busy machine."""


async def break_batch(battle: Battle) -> None:
    """Kill front door, orchestrators, a worker and nats-server, in any order, while a batch runs and files are sent."""
    acts = battle.random.sample(processes.process_deaths(), len(processes.process_deaths()))
    kills = [partial(act, battle) for act in acts]
    async with asyncio.TaskGroup() as group:
        group.create_task(_send_files(battle), name="files")
        end, found = await through_deaths(battle.cluster, LINES, kills, within=WITHIN)
    check_answers(end, found, LINES)


async def _send_files(battle: Battle) -> None:
    """Send files, one after the other, and read each again; one whose sending broke is sent again."""
    async with AsyncOpenAI(base_url=f"{battle.cluster.url}/v1", api_key="any", max_retries=30, timeout=30.0) as client:
        for number in range(FILES):
            data = battle.random.randbytes(FILE_BYTES)
            sent = await client.files.create(file=(f"{number}.bin", data), purpose="user_data")
            assert sent.bytes == FILE_BYTES
            content = (await client.files.content(sent.id)).content
            assert content == data, f"file {number} came back as {len(content)} other bytes"
