"""Arrays from one stage to the next, by each way that the product has, beside one memcpy of the same bytes."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import uvloop

from bench.command import Bench, Report, Size, console
from bench.measuring.rounds import Measure, Sample, flat, interleaved, medians, spreads
from bench.served import producing, served
from omnibus.client.producer import Producer
from omnibus.pipeline.loading import parse_pipeline
from omnibus.pipeline.spec import PayloadRule, PipelineSpec
from omnibus.wire.request import Request
from tools.serving import Serving

_WAYS = {"same_host": "auto", "tcp": "peer", "object": "object"}
"""The ways that are measured, and the rule of the edge that asks for each."""
_PIPELINE = """
name: handoff-{way}
deadline: 60s
stages:
- {{stage_id: 0, name: maker, engine: python, model: "bench.stages:make_array",
   engine_args: {{outputs: {{array: tensor, made: json}}}}}}
- {{stage_id: 1, name: taker, engine: python, model: "bench.stages:take_array", input_sources: [0],
   final_output: true, final_output_type: text}}
edges:
- {{source: 0, target: 1, payload: {rule}}}
"""
_MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    rounds: int = 5
    large_mib: int = 64
    large: int = 6
    """Large arrays a round."""
    small: int = 60
    """1 MiB arrays a round."""
    noop: int = 60
    """Arrays of one number a round: the hop itself."""


def run(settings: Settings, folder: Path) -> Report:
    """Serve one pipeline a way, and send arrays through each in turn."""
    ways = {way: rule for way, rule in _WAYS.items() if rule in tuple(PayloadRule)}
    missing = {
        f"{way}.{figure}": f"edges have no payload rule {rule!r}"
        for way, rule in _WAYS.items()
        if way not in ways
        for figure in ("gb_a_second", "beside_memcpy", "mib_over_noop_ms")
    }
    with ExitStack() as stack:
        running: dict[str, Serving] = {}
        for way, rule in ways.items():
            first = next(iter(running.values()), None)
            text = _PIPELINE.format(way=way, rule=rule)
            running[way] = stack.enter_context(served(text, folder / way, beside=first))
        report = uvloop.run(_measure(settings, {way: (running[way], rule) for way, rule in ways.items()}))
    return Report(figures=report.figures, spread=report.spread, missing=missing)


async def _measure(settings: Settings, ways: dict[str, tuple[Serving, str]]) -> Report:
    async with AsyncExitStack() as stack:
        measures: dict[str, Measure] = {"memcpy": _memcpy(settings)}
        for way, (serving, rule) in ways.items():
            _, producer = await stack.enter_async_context(producing(serving))
            spec = parse_pipeline(_PIPELINE.format(way=way, rule=rule))
            measures[way] = _measured(settings, producer, spec)
            for nbytes in (4, _MIB, settings.large_mib * _MIB):
                await _handoffs(producer, spec, nbytes, 2)
        rounds = await interleaved(measures, settings.rounds, lambda line: console.print(line, style="dim"))
    samples = []
    for one in rounds:
        ratios = {f"{way}.beside_memcpy": one[way]["gb_a_second"] / one["memcpy"]["gb_a_second"] for way in ways}
        samples.append({**flat(one), **ratios})
    return Report(figures=medians(samples), spread=spreads(samples))


def _measured(settings: Settings, producer: Producer, spec: PipelineSpec) -> Measure:
    async def measure() -> Sample:
        nbytes = settings.large_mib * _MIB
        noop = median(await _handoffs(producer, spec, 4, settings.noop))
        small = median(await _handoffs(producer, spec, _MIB, settings.small))
        large = median(await _handoffs(producer, spec, nbytes, settings.large))
        return {
            "gb_a_second": nbytes / large / 1e9,
            "large_ms": large * 1000,
            "mib_ms": small * 1000,
            "noop_ms": noop * 1000,
            "mib_over_noop_ms": (small - noop) * 1000,
        }

    return measure


async def _handoffs(producer: Producer, spec: PipelineSpec, nbytes: int, count: int) -> Sequence[float]:
    """Seconds from the array's making in one process to its arrival in the next stage's function."""
    taken = []
    for _ in range(count):
        submission = await producer.submit(spec, Request(prompt=str(nbytes), stream=False))
        result = await submission.result()
        result.raise_for_state()
        output = result.output("text")
        assert output is not None
        taken.append(float(json.loads(output.text)["seconds"]))
    return taken


def _memcpy(settings: Settings) -> Measure:
    source = np.arange(settings.large_mib * _MIB // 4, dtype=np.float32)
    target = np.empty_like(source)

    async def measure() -> Sample:
        taken = []
        for _ in range(11):
            started = time.perf_counter()
            np.copyto(target, source)
            taken.append(time.perf_counter() - started)
        return {"gb_a_second": source.nbytes / median(taken) / 1e9}

    return measure


BENCH = Bench(
    name="handoff",
    summary="Arrays from one stage to the next, beside one memcpy.",
    sizes={
        Size.SMALLEST: Settings(rounds=1, large_mib=4, large=2, small=3, noop=3),
        Size.QUICK: Settings(rounds=2, large=3, small=30, noop=30),
        Size.FULL: Settings(),
    },
    measure=run,
)

if __name__ == "__main__":
    BENCH.main()
