"""The cost of a message that many processes hear: claims and heartbeats, by the CPU of the broker and of the listeners."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

from bench.measuring.processes import Processes
from omnibus.broker.bucket import Bucket
from omnibus.broker.connection import Connection, connect
from omnibus.broker.embedded import EmbeddedServer, free_port
from omnibus.broker.layout import ensure_layout, layout_of
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.registry.death.claim_book import ClaimBook
from omnibus.registry.presence.replica_record import ReplicaRecord
from omnibus.registry.presence.replica_view import ReplicaView
from omnibus.wire import codec, stores, subjects
from omnibus.wire.control import Claim

_LISTENERS, _MESSAGES = 20, 1500
_SETTLED = 1.0
"""Seconds after which the listeners have handled what was sent."""
_PIPELINE = PipelineSpec(
    name="scale",
    stages=(StageSpec(stage_id=0, name="only", engine="sim", final_output=True, final_output_type="text"),),
)


async def measure(folder: Path) -> dict[str, float]:
    """Microseconds of CPU by name, as `Costs` has them."""
    async with EmbeddedServer(folder, profile="balanced", port=free_port()) as server, AsyncExitStack() as stack:
        assert server.pid is not None
        both = Processes((), (server.pid, os.getpid()))
        sender = await stack.enter_async_context(connect(server.url, name="sender"))
        await ensure_layout(sender, layout_of(_PIPELINE))
        bucket = Bucket(sender, stores.replicas_bucket("scale"))

        async def announce(number: int) -> None:
            claim = Claim(stage_id=0, replica="r0", instance="one", number=number, held=(("a" * 32, "b" * 60),))
            await sender.publish(subjects.claim("scale", 0, "r0"), codec.encode(claim))

        async def beat(number: int) -> None:
            record = ReplicaRecord(stage_id=0, replica="r0", instance="one", slots=1, announced=number)
            await bucket.put("0.r0", codec.encode(record))

        async def cpu(send: Callable[[int], Awaitable[None]]) -> dict[int, float]:
            before = both.cpu()
            for number in range(_MESSAGES):
                await send(number)
            await asyncio.sleep(_SETTLED)
            after = both.cpu()
            return {pid: (after[pid] - before[pid]) / _MESSAGES / _LISTENERS * 1e6 for pid in after}

        alone = await cpu(announce), await cpu(beat)
        await _listening(stack, server.url, lambda connection: ClaimBook(connection, "scale"))
        claims = await cpu(announce)
        await _listening(stack, server.url, lambda connection: ReplicaView(connection, "scale", timeout=10.0))
        beats = await cpu(beat)
        return {
            "delivery": claims[server.pid] - alone[0][server.pid],
            "claim": claims[os.getpid()] - alone[0][os.getpid()],
            "heartbeat": beats[os.getpid()] - alone[1][os.getpid()],
        }


async def _listening(stack: AsyncExitStack, url: str, make: Callable[[Connection], ClaimBook | ReplicaView]) -> None:
    for number in range(_LISTENERS):
        connection = await stack.enter_async_context(connect(url, name=f"listener {number}"))
        await stack.enter_async_context(make(connection))
