"""The effect of one tenant's flood on another's latency: alone, beside the flood, and with everybody equal, in the same run.

    python -m bench.fairness [--asked 60] [--flood 800]

One stage of four slots, 50 ms a task; the flood is open before the other tenant asks, one request after the other. The
last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median

import msgspec
import uvloop
from rich.console import Console
from rich.table import Table

from bench.measuring.load import one_in_flight, percentile
from omnibus.broker.connection import Connection, connect
from omnibus.broker.embedded import EmbeddedServer
from omnibus.broker.layout import ensure_layout, layout_of
from omnibus.broker.listening import free_port
from omnibus.client.producer import Producer
from omnibus.observability.logging import configure_logging
from omnibus.orchestrator.service import OrchestratorService
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.wire.request import Request
from omnibus.workers.replica import Replica

_STAGE = StageSpec(
    stage_id=0, name="work", engine="sim", slots=4, final_output=True, final_output_type="text",
    engine_args={"latency": 0.05},
)  # fmt: skip
_UP = 10.0

console = Console(highlight=False)


async def run(given: argparse.Namespace, url: str) -> dict[str, dict[str, float]]:
    """Milliseconds by situation."""
    shared = PipelineSpec(name="shared", stages=(_STAGE,), deadline=120.0)
    equal = msgspec.structs.replace(shared, name="equal", tenant_share=None)
    figures = {}
    async with connect(url, name="bench") as connection:
        async with _served(connection, shared) as producer:
            figures["alone"] = await _latencies(producer, shared, given.asked)
            await _flood(producer, shared, given.flood)
            figures["beside a flood"] = await _latencies(producer, shared, given.asked)
        async with _served(connection, equal) as producer:
            await _flood(producer, equal, given.flood)
            figures["beside a flood, all equal"] = await _latencies(producer, equal, 1, at_once=6)
    return figures


async def _latencies(producer: Producer, spec: PipelineSpec, count: int, *, at_once: int = 1) -> dict[str, float]:
    """Measure `count` requests one after the other, `at_once` times beside each other."""

    async def ask() -> None:
        await (await producer.submit(spec, Request(prompt="hi", tenant="quiet", stream=False))).result()

    rows = await asyncio.gather(*[one_in_flight(ask, count) for _ in range(at_once)])
    taken = [seconds for row in rows for seconds in row.latencies]
    return {"p50_ms": round(median(taken) * 1000, 1), "p99_ms": round(percentile(taken, 99) * 1000, 1)}


async def _flood(producer: Producer, spec: PipelineSpec, count: int) -> None:
    request = Request(prompt="hi", tenant="loud", stream=False)
    await asyncio.gather(*[producer.submit(spec, request) for _ in range(count)])


@asynccontextmanager
async def _served(connection: Connection, spec: PipelineSpec) -> AsyncIterator[Producer]:
    await ensure_layout(connection, layout_of(spec))
    replica, orchestrator = Replica(connection, spec, _STAGE), OrchestratorService(connection, spec)
    running = [asyncio.create_task(replica.run()), asyncio.create_task(orchestrator.run())]
    try:
        async with Producer(connection) as producer, asyncio.timeout(None) as timeout:
            timeout.reschedule(asyncio.get_running_loop().time() + _UP)
            await (await producer.submit(spec, Request(prompt="hi"))).result()
            timeout.reschedule(None)
            yield producer
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def main() -> None:
    """Start a server, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--asked", type=int, default=60)
    parser.add_argument("--flood", type=int, default=800)
    given = parser.parse_args()
    configure_logging(level="error")
    figures = uvloop.run(_measured(given))
    table = Table("latency of the quiet tenant", "p50 ms", "p99 ms")
    for name, got in figures.items():
        table.add_row(name, str(got["p50_ms"]), str(got["p99_ms"]))
    console.print(table)
    print(json.dumps({"bench": "fairness", **figures}))


async def _measured(given: argparse.Namespace) -> dict[str, dict[str, float]]:
    with tempfile.TemporaryDirectory(prefix="omnibus-bench-") as folder:
        async with EmbeddedServer(Path(folder), profile="balanced", port=free_port()) as server:
            return await run(given, server.url)


if __name__ == "__main__":
    main()
