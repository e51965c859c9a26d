"""Throughput of a chain of three stages by the number of their replicas, and latency with many of them; two orchestrators."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import uvloop

from bench.command import Bench, Report, Size, console
from bench.measuring.load import Load, many_in_flight
from bench.served import another, producing, served
from omnibus.client.producer import Producer
from omnibus.pipeline.loading import parse_pipeline
from omnibus.pipeline.spec import PipelineSpec
from omnibus.wire.request import Request

_STAGES = 3
_PIPELINE = """
name: scaling
deadline: 120s
stages:
- {{stage_id: 0, name: first, engine: sim, num_replicas: {replicas}, engine_args: {{latency: {latency}}}}}
- {{stage_id: 1, name: second, engine: sim, num_replicas: {replicas}, engine_args: {{latency: {latency}}}, input_sources: [0]}}
- {{stage_id: 2, name: third, engine: sim, num_replicas: {replicas}, engine_args: {{latency: {latency}}}, input_sources: [1],
   final_output: true, final_output_type: text}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    replicas: str = "1,2,3,4"
    """Replicas of each stage while throughput is measured; compared with the first."""
    wide: int = 16
    """Replicas of each stage while latency is compared with that of one."""
    latency: float = 0.05
    """Seconds that the engine sleeps."""
    seconds: float = 8.0
    """Seconds of load for each figure, if the replicas do all that they can."""

    @property
    def counts(self) -> list[int]:
        return [int(count) for count in self.replicas.split(",")]


def run(settings: Settings, folder: Path) -> Report:
    """Serve the chain once a number of replicas."""
    rates, latencies = {}, {}
    for count in dict.fromkeys((*settings.counts, settings.wide)):
        saturated, calm = _measured(settings, count, folder / str(count), saturate=count in settings.counts)
        latencies[count] = calm
        if saturated is not None:
            rates[count] = saturated.rate
        rate = f"{rates[count]:.1f} /s, " if count in rates else ""
        console.print(f"{count} replicas a stage: {rate}p99 {calm.p99_ms:.0f} ms", style="dim")
    first, last = settings.counts[0], settings.counts[-1]
    figures = {
        **{f"rate_{count}": rate for count, rate in rates.items()},
        "linear_share": rates[last] / rates[first] * first / last,
        **{f"p99_ms_{count}": load.p99_ms for count, load in latencies.items()},
        "p99_wide_beside_one": latencies[settings.wide].p99_ms / latencies[first].p99_ms,
    }
    ideal = {count: count / settings.latency for count in rates}
    return Report(figures=figures, detail={"rates": rates, "ideal": ideal})


def _measured(settings: Settings, count: int, folder: Path, *, saturate: bool) -> tuple[Load | None, Load]:
    text = _PIPELINE.format(replicas=count, latency=settings.latency)
    with served(text, folder) as serving, another("orchestrator", "scaling", serving):

        async def measure() -> tuple[Load | None, Load]:
            spec = parse_pipeline(text)
            async with producing(serving) as (_, producer):
                ask = _Ask(producer, spec)
                requests = max(int(settings.seconds * count / settings.latency), 4)
                await many_in_flight(ask, 2 * count, count)
                calm = await many_in_flight(ask, max(requests // _STAGES, 2), count)
                full = await many_in_flight(ask, requests, 3 * _STAGES * count) if saturate else None
                return full, calm

        return uvloop.run(measure())


class _Ask:
    """One request through the chain."""

    def __init__(self, producer: Producer, spec: PipelineSpec) -> None:
        self._producer, self._spec = producer, spec

    async def __call__(self) -> None:
        submission = await self._producer.submit(self._spec, Request(prompt="hi", stream=False))
        (await submission.result()).raise_for_state()


BENCH = Bench(
    name="scaling",
    summary="Throughput and latency by the number of replicas.",
    sizes={
        Size.SMALLEST: Settings(replicas="1,2", wide=2, seconds=0.5),
        Size.QUICK: Settings(replicas="1,4", seconds=4.0),
        Size.FULL: Settings(),
    },
    measure=run,
)

if __name__ == "__main__":
    BENCH.main()
