"""The walk of one request in numbers: messages that clients send and receive, and asyncio tasks that are made for it.

Everything runs on one loop here, each part over a connection of its own: two replicas, an orchestrator, a supervisor's view
of deaths, a producer. What they do when idle is subtracted.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import uvloop

from bench.measuring.load import one_in_flight
from bench.measuring.wire_counter import WireCounter, counting
from omnibus.broker.connection import connect
from omnibus.broker.embedded import EmbeddedServer
from omnibus.broker.layout import ensure_layout, layout_of
from omnibus.broker.listening import free_port
from omnibus.client.producer import Producer
from omnibus.orchestrator.service import OrchestratorService
from omnibus.pipeline.spec import PipelineSpec
from omnibus.registry.death.claim_book import ClaimBook
from omnibus.wire.request import Request
from omnibus.workers.replica import Replica

_IDLE = 1.0
"""Seconds in which the idle system is counted."""


class _Counts:
    """Tasks and messages, read at once."""

    def __init__(self, wire: WireCounter) -> None:
        self._wire = wire
        self.tasks = 0

    def make(self, loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **given: Any) -> asyncio.Task[Any]:
        self.tasks += 1
        return asyncio.Task(coro, loop=loop, **given)

    def read(self) -> Counter[str]:
        messages: Counter[str] = Counter()
        for (name, way), count in self._wire.messages.items():
            messages[f"messages {way} by {name}"] = count
        messages["asyncio tasks"] = self.tasks
        messages["writes"] = sum(self._wire.writes.values())
        return messages


def walk(spec: PipelineSpec, payload: str, count: int, folder: Path) -> dict[str, float]:
    """Counts of one request: the mean over `count` of them, one in flight."""
    return uvloop.run(_walk(spec, payload, count, folder))


async def _walk(spec: PipelineSpec, payload: str, count: int, folder: Path) -> dict[str, float]:
    async with (
        EmbeddedServer(folder, profile="balanced", port=free_port()) as server,
        counting(server.url) as (wire, url),
    ):
        counts = _Counts(wire)
        async with _running(spec, url) as producer:

            async def ask() -> None:
                await (await producer.submit(spec, Request(prompt=payload, stream=False))).result()

            await one_in_flight(ask, 10)
            asyncio.get_running_loop().set_task_factory(counts.make)
            before = counts.read()
            await asyncio.sleep(_IDLE)
            idle = counts.read()
            idle.subtract(before)
            before, started = counts.read(), time.monotonic()
            await one_in_flight(ask, count)
            after, seconds = counts.read(), time.monotonic() - started
            asyncio.get_running_loop().set_task_factory(None)
    each = {name: (after[name] - before[name] - idle[name] / _IDLE * seconds) / count for name in after}
    return {"messages": sum(value for name, value in each.items() if name.startswith("messages ")), **each}


@asynccontextmanager
async def _running(spec: PipelineSpec, url: str) -> AsyncIterator[Producer]:
    async with AsyncExitStack() as stack:

        async def opened(name: str) -> Any:
            return await stack.enter_async_context(connect(url, name=name))

        client = await opened("producer")
        await ensure_layout(client, layout_of(spec))
        parts: list[Any] = [
            *[Replica(await opened(f"replica {stage.stage_id}"), spec, stage) for stage in spec.stages],
            OrchestratorService(await opened("orchestrator"), spec),
        ]
        tasks = [asyncio.create_task(part.run(), name="bench.part") for part in parts]
        stack.push_async_callback(_end, tasks)
        await stack.enter_async_context(ClaimBook(await opened("supervisor"), spec.name))
        yield await stack.enter_async_context(Producer(client))


async def _end(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
