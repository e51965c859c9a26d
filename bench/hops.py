"""The cost of a hop: two no-op stages, every hop its own process, 1 KiB, beside ZeroMQ and MessagePack in the same run.

    python -m bench.hops [--rounds 5] [--idle 200] [--busy 2000] [--width 64] [--payload 1024]

Rounds of all systems are interleaved, figures are medians over the rounds. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median

import uvloop
from rich.console import Console
from rich.table import Table

from bench import jetstream, zeromq
from bench.cpu import cpu_seconds, spent
from bench.load import Ask, Round, many_in_flight, measure, middle, one_in_flight
from omnibus.observability.logging import configure_logging
from omnibus.pipeline.route import Forwarding

ZEROMQ = "zeromq"
_TITLES = {
    Forwarding.ORCHESTRATOR: "Omnibus, the orchestrator forwards",
    Forwarding.DIRECT: "Omnibus, workers forward directly",
    ZEROMQ: "ZeroMQ and MessagePack, nothing durable",
}
_WARM_UP = 20

console = Console(highlight=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The figures of one run."""

    figures: Mapping[str, Round]
    """Medians over the rounds, by system."""
    spans: Mapping[Forwarding, Mapping[str, float]]
    """Where the time of one request goes, seconds."""
    cpu: Mapping[Forwarding, Mapping[str, float]]
    """CPU time of one request by process, seconds."""


def run(given: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Start everything, measure, and return what the last line says."""
    nats_url: str | None = None
    with ExitStack() as stack:
        roots = [os.getpid()]
        for mode in Forwarding:
            with console.status(f"starting {mode}"):
                served = jetstream.served(mode, slots=given.width, folder=folder / mode, nats_url=nats_url)
                running = stack.enter_context(served)
            nats_url = running.nats_url
            roots.append(running.pid)
        assert nats_url is not None
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            got = runner.run(_measure(given, nats_url, roots))
    _print_figures(got.figures, given.width)
    _print_spans(got.spans)
    _print_cpu(got.cpu)
    return _report(got, given)


async def _measure(given: argparse.Namespace, nats_url: str, roots: Sequence[int]) -> Measured:
    payload = "x" * given.payload
    async with AsyncExitStack() as stack:
        sides = {
            mode: await stack.enter_async_context(
                jetstream.pipeline(mode, payload, slots=given.width, nats_url=nats_url)
            )
            for mode in Forwarding
        }
        baseline = await stack.enter_async_context(zeromq.pipeline(payload.encode()))
        systems: dict[str, Ask] = {**{mode: side.ask for mode, side in sides.items()}, ZEROMQ: baseline.ask}
        return Measured(
            figures=await _interleaved(systems, given),
            spans={mode: await _spans(side, given.idle) for mode, side in sides.items()},
            cpu={mode: await _cpu(side.ask, given, roots) for mode, side in sides.items()},
        )


async def _interleaved(systems: Mapping[str, Ask], given: argparse.Namespace) -> dict[str, Round]:
    rounds: dict[str, list[Round]] = {name: [] for name in systems}
    for ask in systems.values():
        await one_in_flight(ask, _WARM_UP)
    for number in range(given.rounds):
        for name, ask in systems.items():
            got = await measure(ask, idle=given.idle, busy=given.busy, width=given.width)
            rounds[name].append(got)
            console.print(f"round {number + 1}, {name}: p50 {_ms(got.p50)} ms, {got.rate:.0f} /s", style="dim")
    return {name: middle(each) for name, each in rounds.items()}


async def _spans(side: jetstream.JetStreamPipeline, count: int) -> dict[str, float]:
    """The median of each span with one request in flight."""
    taken = [asdict(await side.spans()) for _ in range(count)]
    return {field.name: median(each[field.name] for each in taken) for field in fields(jetstream.Spans)}


async def _cpu(ask: Ask, given: argparse.Namespace, roots: Sequence[int]) -> dict[str, float]:
    """CPU seconds of one request, by process, with many in flight."""
    before = cpu_seconds(roots)
    await many_in_flight(ask, given.busy, given.width)
    used = spent(before, cpu_seconds(roots))
    return {role: seconds / given.busy for role, seconds in used.items()}


def _print_figures(figures: Mapping[str, Round], width: int) -> None:
    table = Table(title="two no-op stages", title_justify="left")
    table.add_column("")
    for column in ("p50 ms", "p99 ms", f"{width} in flight, /s"):
        table.add_column(column, justify="right")
    for name, got in figures.items():
        table.add_row(_TITLES[name], _ms(got.p50), _ms(got.p99), f"{got.rate:.0f}")
    console.print(table)


def _print_spans(spans: Mapping[Forwarding, Mapping[str, float]]) -> None:
    table = Table(title="where the time of one request goes, median ms, one in flight", title_justify="left")
    table.add_column("")
    for mode in spans:
        table.add_column(mode, justify="right")
    for name in (field.name for field in fields(jetstream.Spans)):
        table.add_row(name.replace("_", " "), *(_ms(each[name]) for each in spans.values()))
    table.add_row("sum", *(_ms(sum(each.values())) for each in spans.values()))
    console.print(table)


def _print_cpu(cpu: Mapping[Forwarding, Mapping[str, float]]) -> None:
    table = Table(title="CPU time of one request, ms, many in flight", title_justify="left")
    table.add_column("")
    for mode in cpu:
        table.add_column(mode, justify="right")
    for role in dict.fromkeys(role for each in cpu.values() for role in each):
        table.add_row(role, *(_ms(each.get(role, 0.0)) for each in cpu.values()))
    table.add_row("sum", *(_ms(sum(each.values())) for each in cpu.values()))
    console.print(table)


def _report(got: Measured, given: argparse.Namespace) -> dict[str, object]:
    report: dict[str, object] = {
        name: {"p50_ms": _rounded(each.p50), "p99_ms": _rounded(each.p99), "rate": round(each.rate)}
        for name, each in got.figures.items()
    }
    profile, cpu = (
        {mode: {name: _rounded(seconds) for name, seconds in each.items()} for mode, each in table.items()}
        for table in (got.spans, got.cpu)
    )
    shape = {"rounds": given.rounds, "width": given.width, "payload": given.payload}
    return {**report, "profile_ms": profile, "cpu_ms": cpu, **shape}


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f}"


def _rounded(seconds: float) -> float:
    return round(seconds * 1000, 3)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.hops", description="What a hop costs.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--idle", type=int, default=200, help="requests a round with one in flight")
    parser.add_argument("--busy", type=int, default=2000, help="requests a round with many in flight")
    parser.add_argument("--width", type=int, default=64, help="how many are in flight")
    parser.add_argument("--payload", type=int, default=1024, help="bytes")
    given = parser.parse_args(words)
    configure_logging("warning")
    with tempfile.TemporaryDirectory(prefix="omnibus-bench-") as folder:
        report = run(given, Path(folder))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
