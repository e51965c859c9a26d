"""How long tasks wait until another replica begins them, when theirs is killed with -9 under load."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import uvloop

from bench.command import Bench, Report, Size, console
from bench.measuring.load import percentile
from bench.served import another, producing, served
from omnibus.client.producer import Producer
from omnibus.client.request_events import Result
from omnibus.pipeline.loading import parse_pipeline
from omnibus.pipeline.spec import PipelineSpec
from omnibus.registry.death.claim_book import ClaimBook
from omnibus.registry.presence.replica_record import ReplicaRecord
from omnibus.registry.presence.replica_view import ReplicaView
from omnibus.wire.request import Request
from tools.serving import Serving

_UP = 60.0
_LOOK = 0.02
_PIPELINE = """
name: failover
deadline: 60s
stages:
- {{stage_id: 0, name: first, engine: sim, slots: {slots}, num_replicas: 2, engine_args: {{latency: [0.05, 0.3]}}}}
- {{stage_id: 1, name: second, engine: sim, slots: {slots}, num_replicas: 2, engine_args: {{latency: [0.05, 0.3]}},
   input_sources: [0], final_output: true, final_output_type: text}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    kills: int = 30
    width: int = 16
    """Requests in flight."""
    slots: int = 16
    """Slots of a replica: the other one always has room for what is lost."""
    seed: int = 1


def run(settings: Settings, folder: Path) -> Report:
    """Serve the pipeline with two orchestrators, and kill its replicas one after the other."""
    text = _PIPELINE.format(slots=settings.slots)
    with served(text, folder) as serving, another("orchestrator", "failover", serving):
        waits = uvloop.run(_measure(settings, serving, parse_pipeline(text)))
    if not waits:
        raise RuntimeError("no killed replica had a task in hand")
    figures = {
        "p50_ms": percentile(waits, 50) * 1000,
        "p99_ms": percentile(waits, 99) * 1000,
        "longest_ms": max(waits) * 1000,
        "tasks": float(len(waits)),
    }
    return Report(figures=figures, detail={"waits_ms": [round(wait * 1000, 1) for wait in sorted(waits)]})


async def _measure(settings: Settings, serving: Serving, spec: PipelineSpec) -> list[float]:
    dice = random.Random(settings.seed)
    killed: dict[tuple[str, int], list[float]] = {}
    async with (
        producing(serving) as (connection, producer),
        ReplicaView(connection, spec.name, timeout=spec.heartbeat_timeout) as view,
        ClaimBook(connection, spec.name) as claims,
        _load(producer, spec, settings.width) as results,
    ):
        for number in range(settings.kills):
            await _all_up(view, spec)
            victim = dice.choice(view.replicas())
            await _busy(claims, victim)
            held = [rid for rid, _ in claims.held(victim)]
            os.kill(victim.pid, signal.SIGKILL)
            at = connection.clock.now()
            for rid in held:
                killed.setdefault((rid, victim.stage_id), []).append(at)
            console.print(f"kill {number + 1}: {len(held)} tasks in hand", style="dim")
            await _until(lambda victim=victim: all(one.pid != victim.pid for one in _up(view)))
        await _all_up(view, spec)
    return _waits(results, killed)


def _waits(results: list[Result], killed: dict[tuple[str, int], list[float]]) -> list[float]:
    """Seconds from the last kill before a task's counted start to that start; a task that had finished waited for nobody."""
    started = {(result.rid, timing.stage_id): timing.started for result in results for timing in result.timings}
    waits = []
    for task, times in killed.items():
        before = [at for at in times if at <= started.get(task, 0.0)]
        if before:
            waits.append(started[task] - max(before))
    return waits


@asynccontextmanager
async def _load(producer: Producer, spec: PipelineSpec, width: int) -> AsyncIterator[list[Result]]:
    """Keep so many requests in flight; at the end wait for the last ones. Raises what one of them fails of."""
    results: list[Result] = []
    ending = asyncio.Event()

    async def client() -> None:
        while not ending.is_set():
            result = await (await producer.submit(spec, Request(prompt="hi", stream=False))).result()
            result.raise_for_state()
            results.append(result)

    async with asyncio.TaskGroup() as group:
        for _ in range(width):
            group.create_task(client())
        yield results
        ending.set()


def _up(view: ReplicaView) -> list[ReplicaRecord]:
    return [record for record in view.replicas() if record.status == "up"]


async def _all_up(view: ReplicaView, spec: PipelineSpec) -> None:
    wanted = sum(stage.num_replicas for stage in spec.stages)
    await _until(lambda: len(_up(view)) == wanted == len(view.replicas()))


async def _busy(claims: ClaimBook, victim: ReplicaRecord) -> None:
    await _until(lambda: bool(claims.held(victim)))


async def _until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(_UP):
        while not true():  # noqa: ASYNC110 the view has no event to wait for
            await asyncio.sleep(_LOOK)


BENCH = Bench(
    name="failover",
    summary="How long the tasks of a killed replica wait.",
    sizes={
        Size.SMALLEST: Settings(kills=1, width=4),
        Size.QUICK: Settings(kills=10),
        Size.FULL: Settings(),
    },
    measure=run,
)

if __name__ == "__main__":
    BENCH.main()
