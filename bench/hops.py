"""The cost of a hop: two no-op stages, every hop its own process, 1 KiB, beside ZeroMQ and, where it is, taskiq on Redis."""

from __future__ import annotations

import asyncio
import importlib.util
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median

import uvloop

from bench.command import Bench, Report, Size, console
from bench.measuring.load import Ask, many_in_flight, one_in_flight
from bench.measuring.processes import Processes, spent
from bench.measuring.rounds import Measure, Sample, beside, flat, interleaved, medians, spreads
from bench.measuring.walk import walk
from bench.peers import redis, zeromq
from bench.served import producing, served
from omnibus.client.producer import Producer
from omnibus.pipeline.loading import parse_pipeline
from omnibus.pipeline.route import Forwarding
from omnibus.pipeline.spec import PipelineSpec
from omnibus.wire.request import Request
from tools.serving import Serving

_ZEROMQ, _TASKIQ = "zeromq", "taskiq"
_COMPARED = ("cpu_ms", "idle_cpu_ms", "p50_ms", "rate")
_PIPELINE = """
name: hops-{forwarding}
deadline: 60s
stages:
- {{stage_id: 0, name: first, engine: python, model: "bench.stages:echo", slots: {slots},
   engine_args: {{outputs: {{text: text}}}}}}
- {{stage_id: 1, name: second, engine: python, model: "bench.stages:echo", slots: {slots},
   engine_args: {{outputs: {{text: text}}}}, input_sources: [0], final_output: true, final_output_type: text}}
edges:
- {{source: 0, target: 1, forwarding: {forwarding}}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    rounds: int = 7
    idle: int = 200
    """Requests a round with one in flight."""
    busy: int = 2000
    """Requests a round with many in flight."""
    width: int = 64
    """How many are in flight then."""
    payload: int = 1024
    """Bytes."""
    walked: int = 40
    """Requests whose messages and tasks are counted."""


@dataclass(frozen=True, slots=True)
class Spans:
    """Where the time of one request went, seconds; they add up to the whole."""

    admission: float
    """`submit` called → accepted: checks, deadline timer, record, first task."""
    first_wait: float
    """Accepted → the first stage has started."""
    first_stage: float
    forward: float
    """The first stage has finished → the second has started: acknowledged publishes, routing, the queue, the pull."""
    second_stage: float
    answer: float
    """The second stage has finished → the answer is in hand: event, terminal write, notice, reading the record."""


class _Omnibus:
    """A served pipeline, seen from its producer."""

    def __init__(self, producer: Producer, spec: PipelineSpec, payload: str) -> None:
        self._producer, self._spec = producer, spec
        self._request = Request(prompt=payload, stream=False)

    async def ask(self) -> None:
        submission = await self._producer.submit(self._spec, self._request)
        (await submission.result()).raise_for_state()

    async def spans(self) -> Spans:
        clock = self._producer.connection.clock
        sent = clock.now()
        submission = await self._producer.submit(self._spec, self._request)
        accepted = clock.now()
        result = await submission.result()
        answered = clock.now()
        first, second = sorted(result.timings, key=lambda timing: timing.stage_id)
        return Spans(
            admission=accepted - sent,
            first_wait=first.started - accepted,
            first_stage=first.finished - first.started,
            forward=second.started - first.finished,
            second_stage=second.finished - second.started,
            answer=answered - second.finished,
        )


@dataclass(frozen=True, slots=True)
class _System:
    """One of those that are compared."""

    ask: Ask
    processes: Processes


def run(settings: Settings, folder: Path) -> Report:
    """Serve both ways of forwarding, measure them beside the peers, and count one request's messages and tasks."""
    with ExitStack() as stack:
        running: dict[Forwarding, Serving] = {}
        for mode in Forwarding:
            first = next(iter(running.values()), None)
            text = _text(mode, settings.width)
            running[mode] = stack.enter_context(served(text, folder / mode, beside=first))
        redis_server = None
        missing = _missing_taskiq()
        if not missing:
            url, pid = redis_server = stack.enter_context(redis.running(folder / "redis"))
            os.environ["BENCH_REDIS_URL"] = url
            redis_server = pid
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            report = runner.run(_measure(settings, running, redis_server))
    payload = "x" * settings.payload
    counts = {
        mode: walk(parse_pipeline(_text(mode, 4)), payload, settings.walked, folder / f"walk-{mode}")
        for mode in Forwarding
    }
    figures = {
        f"{mode}.{figure}": each[name]
        for mode, each in counts.items()
        for figure, name in (("messages", "messages"), ("tasks", "asyncio tasks"))
    }
    lost = {f"{mode}.{name}_beside_{_TASKIQ}": missing for mode in Forwarding for name in _COMPARED if missing}
    detail = {**report.detail, "walk": {mode: _rounded(each) for mode, each in counts.items()}}
    return Report(figures={**report.figures, **figures}, spread=report.spread, missing=lost, detail=detail)


async def _measure(settings: Settings, running: Mapping[Forwarding, Serving], redis_pid: int | None) -> Report:
    payload = "x" * settings.payload
    async with AsyncExitStack() as stack:
        sides, systems = {}, {}
        nats = _nats_pid(next(iter(running.values())))
        for mode, serving in running.items():
            _, producer = await stack.enter_async_context(producing(serving))
            side = sides[mode] = _Omnibus(producer, parse_pipeline(_text(mode, settings.width)), payload)
            await side.ask()
            systems[str(mode)] = _System(side.ask, Processes((serving.pid,), (nats, os.getpid())))
        baseline = await stack.enter_async_context(zeromq.pipeline(payload.encode()))
        systems[_ZEROMQ] = _System(baseline.ask, Processes(baseline.pids, (os.getpid(),)))
        if redis_pid is not None:
            systems[_TASKIQ] = await stack.enter_async_context(_taskiq(payload, redis_pid))
        for system in systems.values():
            await many_in_flight(system.ask, settings.width, settings.width)
        cpu: dict[str, list[Mapping[str, float]]] = {name: [] for name in systems}
        measures: dict[str, Measure] = {
            name: _measured(system, settings, cpu[name]) for name, system in systems.items()
        }
        rounds = await interleaved(measures, settings.rounds, lambda line: console.print(line, style="dim"))
        spans = {mode: await _spans(side, settings.idle) for mode, side in sides.items()}
    samples = [_sample(one) for one in rounds]
    detail = {
        "spans_ms": {mode: _rounded(each, 1000) for mode, each in spans.items()},
        "cpu_ms": {name: _rounded(_middle(each), 1000) for name, each in cpu.items()},
    }
    return Report(figures=medians(samples), spread=spreads(samples), detail=detail)


def _measured(system: _System, settings: Settings, cpu: list[Mapping[str, float]]) -> Measure:
    async def measure() -> Sample:
        start = system.processes.cpu()
        idle = await one_in_flight(system.ask, settings.idle)
        between = system.processes.cpu()
        busy = await many_in_flight(system.ask, settings.busy, settings.width)
        used = spent(between, system.processes.cpu())
        cpu.append({role: seconds / settings.busy for role, seconds in used.items()})
        return {
            "p50_ms": idle.p50_ms,
            "p99_ms": idle.p99_ms,
            "rate": busy.rate,
            "cpu_ms": sum(used.values()) / settings.busy * 1000,
            "idle_cpu_ms": sum(spent(start, between).values()) / settings.idle * 1000,
        }

    return measure


def _sample(one: Mapping[str, Sample]) -> dict[str, float]:
    ratios = [beside(one, mode, peer, *_COMPARED) for mode in Forwarding for peer in (_ZEROMQ, _TASKIQ) if peer in one]
    return {**flat(one), **{name: value for each in ratios for name, value in each.items()}}


async def _spans(side: _Omnibus, count: int) -> dict[str, float]:
    """The median of each span with one request in flight."""
    taken = [asdict(await side.spans()) for _ in range(count)]
    return {field.name: median(each[field.name] for each in taken) for field in fields(Spans)}


@asynccontextmanager
async def _taskiq(payload: str, redis_pid: int) -> AsyncIterator[_System]:
    from bench.peers import taskiq_queue  # noqa: PLC0415 it connects to the server that was started for it

    async with taskiq_queue.pipeline(payload) as side:
        yield _System(side.ask, Processes(side.pids, (redis_pid, os.getpid())))


def _missing_taskiq() -> str:
    """The reason why taskiq cannot be measured; empty when it can."""
    if importlib.util.find_spec("taskiq_redis") is None:
        return "taskiq-redis is not installed (make setup)"
    return "" if redis.binary() else "redis-server is not installed (Debian: apt install redis-server; or REDIS_SERVER)"


def _nats_pid(running: Serving) -> int:
    from omnibus.broker.discovery import running_server  # noqa: PLC0415

    server = running_server(running.log.parent)
    assert server is not None
    return server.pid


def _text(forwarding: Forwarding, slots: int) -> str:
    return _PIPELINE.format(forwarding=forwarding, slots=slots)


def _middle(rows: list[Mapping[str, float]]) -> dict[str, float]:
    roles = dict.fromkeys(role for row in rows for role in row)
    return {role: median(row.get(role, 0.0) for row in rows) for role in roles}


def _rounded(values: Mapping[str, float], times: float = 1.0) -> dict[str, float]:
    return {name: round(value * times, 3) for name, value in values.items()}


BENCH = Bench(
    name="hops",
    summary="The cost of a hop between two no-op stages, beside ZeroMQ and taskiq.",
    sizes={
        Size.SMALLEST: Settings(rounds=1, idle=20, busy=60, width=8, walked=10),
        Size.QUICK: Settings(rounds=3, idle=100, busy=800),
        Size.FULL: Settings(),
    },
    measure=run,
)

if __name__ == "__main__":
    BENCH.main()
