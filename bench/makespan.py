"""The time until a batch of tasks of very different costs is done on four replicas, beside the bound that no schedule beats.

Random, round-robin and least-queue choose a replica when a task arrives, as most balancers do; they and the shared queue are
computed from the same costs in a model without any overhead. Only the product's own shared queue is run.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import msgspec
import uvloop

from bench.command import Bench, Report, Size, console
from bench.served import producing, served
from omnibus.client.producer import Producer
from omnibus.pipeline.loading import parse_pipeline
from omnibus.pipeline.spec import PipelineSpec
from omnibus.wire.request import Request

_PIPELINE = """
name: makespan
deadline: 120s
tenant_share: null
stages:
- {{stage_id: 0, name: work, engine: sim, num_replicas: {replicas}, final_output: true, final_output_type: text}}
"""
_RATIOS = (1, 10, 50)
_MODELLED = 200
"""Shuffles of the costs over which the model's figures are means."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    replicas: int = 4
    tasks: int = 160
    seconds: float = 10.0
    """The lower bound that the costs are scaled to."""
    seed: int = 1


def run(settings: Settings, folder: Path) -> Report:
    """Serve the stage, and give it each batch."""
    text = _PIPELINE.format(replicas=settings.replicas)
    with served(text, folder) as serving:

        async def measure() -> dict[int, float]:
            async with producing(serving) as (_, producer):
                spec = parse_pipeline(text)
                await _done(producer, spec, [0.0] * settings.replicas * 2)
                return {ratio: await _done(producer, spec, costs_of(settings, ratio)) for ratio in _RATIOS}

        taken = uvloop.run(measure())
    figures, detail = {}, {}
    for ratio, seconds in taken.items():
        costs = costs_of(settings, ratio)
        figures[f"over_bound_1_to_{ratio}"] = seconds / lower_bound(costs, settings.replicas)
        detail[f"model_1_to_{ratio}"] = modelled(costs, settings)
        console.print(f"costs 1:{ratio}: {seconds:.2f} s, {detail[f'model_1_to_{ratio}']}", style="dim")
    figures["over_bound_worst"] = max(figures.values())
    widest = detail[f"model_1_to_{_RATIOS[-1]}"]
    return Report(figures={**figures, **{f"model.{name}": value for name, value in widest.items()}}, detail=detail)


async def _done(producer: Producer, spec: PipelineSpec, costs: Sequence[float]) -> float:
    """Seconds from the first submission to the last answer."""
    started = time.perf_counter()

    async def one(cost: float) -> None:
        request = Request(prompt="hi", stream=False, sampling_params={"work": {"latency": cost}})
        (await (await producer.submit(spec, request)).result()).raise_for_state()

    async with asyncio.TaskGroup() as group:
        for cost in costs:
            group.create_task(one(cost))
    return time.perf_counter() - started


def costs_of(settings: Settings, ratio: int) -> list[float]:
    """Costs evenly between 1 and `ratio`, shuffled, scaled so that they fill the replicas for the settings' seconds."""
    count = settings.tasks
    raw = [1 + (ratio - 1) * index / max(count - 1, 1) for index in range(count)]
    scale = settings.seconds * settings.replicas / sum(raw)
    random.Random(settings.seed).shuffle(raw)
    return [cost * scale for cost in raw]


def lower_bound(costs: Sequence[float], replicas: int) -> float:
    """No schedule is done before all replicas have worked all the time, nor before the longest task."""
    return max(sum(costs) / replicas, *costs)


def modelled(costs: Sequence[float], settings: Settings) -> dict[str, float]:
    """Makespan over the lower bound by policy, the mean over many orders of the same costs."""
    dice, bound = random.Random(settings.seed), lower_bound(costs, settings.replicas)
    taken: dict[str, list[float]] = {name: [] for name in _POLICIES}
    for _ in range(_MODELLED):
        order = dice.sample(costs, len(costs))
        for name, choose in _POLICIES.items():
            taken[name].append(_makespan(order, settings.replicas, choose, dice) / bound)
    return {name: round(mean(each), 3) for name, each in taken.items()}


def _makespan(
    costs: Sequence[float], replicas: int, choose: Callable[[_Queues, random.Random], int], dice: random.Random
) -> float:
    queues = _Queues([0.0] * replicas, [0] * replicas)
    for cost in costs:
        at = choose(queues, dice)
        queues.work[at] += cost
        queues.count[at] += 1
    return max(queues.work)


class _Queues(msgspec.Struct):
    """The queues of all replicas, as tasks are given out one after the other before any is done."""

    work: list[float]
    count: list[int]


def _least(values: Sequence[float]) -> int:
    return min(range(len(values)), key=values.__getitem__)


_POLICIES: Mapping[str, Callable[[_Queues, random.Random], int]] = {
    "shared-queue": lambda queues, _dice: _least(queues.work),  # the replica that is free first takes the next task
    "random": lambda queues, dice: dice.randrange(len(queues.count)),
    "round-robin": lambda queues, _dice: sum(queues.count) % len(queues.count),
    "least-queue-length": lambda queues, dice: dice.choice(
        [at for at, count in enumerate(queues.count) if count == min(queues.count)]
    ),
}


BENCH = Bench(
    name="makespan",
    summary="The time until a batch of tasks of mixed costs is done, beside the lower bound.",
    sizes={
        Size.SMALLEST: Settings(tasks=16, seconds=0.5, replicas=2),
        Size.QUICK: Settings(seconds=5.0),
        Size.FULL: Settings(),
    },
    measure=run,
)

if __name__ == "__main__":
    BENCH.main()
