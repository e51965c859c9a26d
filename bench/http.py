"""Requests over HTTP to two no-op stages, beside a bare FastAPI app that answers at once, by the same client."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import uvloop

from bench.command import Bench, Report, Size, console
from bench.measuring.load import Ask, by_clients
from bench.measuring.processes import Processes, spent
from bench.measuring.rounds import Measure, Sample, beside, flat, interleaved, medians, spreads
from bench.peers import plain_fastapi
from bench.served import served
from omnibus.cli.load_client import HttpClient, clients

_FASTAPI = "fastapi"
_PIPELINE = """
name: http
deadline: 60s
stages:
- {{stage_id: 0, name: first, engine: python, model: "bench.stages:echo", slots: {slots},
   engine_args: {{outputs: {{text: text}}}}}}
- {{stage_id: 1, name: second, engine: python, model: "bench.stages:echo", slots: {slots},
   engine_args: {{outputs: {{text: text}}}}, input_sources: [0], final_output: true, final_output_type: text}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    rounds: int = 7
    requests: int = 2000
    """Requests a round at each width."""
    width: int = 64
    """Clients while the rate is measured."""
    narrow: int = 32
    """Clients while latencies are measured."""
    payload: int = 1024
    """Bytes of the prompt."""


def run(settings: Settings, folder: Path) -> Report:
    """Serve both, and measure them in turn."""
    with (
        served(_PIPELINE.format(slots=settings.width), folder, front_door=True) as omnibus,
        plain_fastapi.running() as (url, pid),
    ):
        systems = {"omnibus": (omnibus.url, Processes((omnibus.pid,))), _FASTAPI: (url, Processes((pid,)))}
        return uvloop.run(_measure(settings, systems))


async def _measure(settings: Settings, systems: Mapping[str, tuple[str, Processes]]) -> Report:
    cpu: dict[str, dict[str, float]] = {name: {} for name in systems}
    measures = {name: _measured(settings, url, processes, cpu[name]) for name, (url, processes) in systems.items()}
    rounds = await interleaved(measures, settings.rounds, lambda line: console.print(line, style="dim"))
    samples = [{**flat(one), **beside(one, "omnibus", _FASTAPI, "rate", "cpu_ms")} for one in rounds]
    return Report(figures=medians(samples), spread=spreads(samples), detail={"cpu_ms": cpu})


def _ask(client: HttpClient, prompt: str) -> Ask:
    body = json.dumps({"model": "http", "prompt": prompt}).encode()

    async def ask() -> None:
        answer = json.loads(await client.post("/v1/completions", body))
        if answer["choices"][0]["text"] != prompt:
            raise RuntimeError(f"a wrong answer: {answer}")

    return ask


def _measured(settings: Settings, url: str, processes: Processes, cpu: dict[str, float]) -> Measure:
    async def measure() -> Sample:
        async with clients(url, max(settings.width, settings.narrow)) as made:  # idle ones of a round ago may be closed
            asks = [_ask(client, "x" * settings.payload) for client in made]
            await by_clients(asks, 2 * len(asks))
            before = processes.cpu()
            load = await by_clients(asks[: settings.width], settings.requests)
            used = spent(before, processes.cpu())
            narrow = await by_clients(asks[: settings.narrow], settings.requests)
        cpu.update({role: round(seconds / settings.requests * 1000, 3) for role, seconds in used.items()})
        return {
            "rate": load.rate,
            "cpu_ms": sum(used.values()) / settings.requests * 1000,
            "p50_ms": narrow.p50_ms,
            "p99_ms": narrow.p99_ms,
        }

    return measure


BENCH = Bench(
    name="http",
    summary="Requests over HTTP to two no-op stages, beside a bare FastAPI app.",
    sizes={
        Size.SMALLEST: Settings(rounds=1, requests=60, width=8, narrow=4),
        Size.QUICK: Settings(rounds=3, requests=800),
        Size.FULL: Settings(),
    },
    measure=run,
)

if __name__ == "__main__":
    BENCH.main()
