"""Tokens that stream to many HTTP clients at once: fast, at a pace with the delay that is added, and in bursts."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import msgspec
import uvloop

from bench.command import Bench, Report, Size, console
from bench.measuring.load import by_clients, percentile
from bench.measuring.processes import Processes, spent
from bench.measuring.rounds import Measure, Sample, flat, interleaved, medians, spreads
from bench.served import served
from omnibus.cli.load_client import HttpClient, clients

_PIPELINE = """
name: stream
deadline: 120s
stages:
- {{stage_id: 0, name: speaker, engine: python, model: "bench.stages:speak", slots: {slots}, num_replicas: {replicas},
   final_output: true, final_output_type: text}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    rounds: int = 5
    clients: int = 64
    fast: float = 25_000.0
    """Words a second that the stage makes for all clients together: more than are asked for."""
    paced: float = 5_000.0
    """Words a second while it is measured how much later they come than they are made."""
    seconds: float = 5.0
    """Duration of either, when it is kept up with."""
    burst: int = 500
    """Words of a stream that are made as fast as the stage can: there is always something to join."""
    replicas: int = 2
    """Replicas of the stage, so that it is not the limit."""


class _Choice(msgspec.Struct):
    text: str


class _Chunk(msgspec.Struct):
    choices: list[_Choice]
    error: object = None


_DECODER = msgspec.json.Decoder(_Chunk)


@dataclass(slots=True)
class _Stream:
    """A stream as its client reads it."""

    pieces: list[tuple[int, str]] = field(default_factory=list)
    """(nanoseconds of the monotonic clock, text)."""
    _rest: bytes = b""

    def take(self, data: bytes) -> None:
        now = time.monotonic_ns()
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data: {"):
                chunk = _DECODER.decode(line[6:])
                if chunk.error is not None:
                    raise RuntimeError(f"an error in the stream: {chunk.error}")
                self.pieces += [(now, choice.text) for choice in chunk.choices if choice.text]

    @property
    def words(self) -> list[tuple[int, str]]:
        """Each word with the moment it came."""
        return [(at, word) for at, text in self.pieces for word in text.split()]


def run(settings: Settings, folder: Path) -> Report:
    """Serve a stage that only speaks, and listen to it."""
    text = _PIPELINE.format(slots=settings.clients, replicas=settings.replicas)
    with served(text, folder, front_door=True) as serving:
        return uvloop.run(_measure(settings, serving.url, Processes((serving.pid,))))


async def _measure(settings: Settings, url: str, processes: Processes) -> Report:
    async with clients(url, settings.clients) as made:
        await _listen(made, 10, 0.0)
        cpu: dict[str, dict[str, float]] = {"fast": {}, "paced": {}, "burst": {}}

        def measured(name: str, tokens: int, rate: float) -> Measure:
            async def measure() -> Sample:
                before, started = processes.cpu(), time.perf_counter()
                streams = await _listen(made, tokens, rate / len(made))
                seconds, used = time.perf_counter() - started, spent(before, processes.cpu())
                count = tokens * len(made)
                cpu[name] = {role: round(each / count * 1e6, 1) for role, each in used.items()}
                return {
                    "tokens_a_second": count / seconds,
                    "cpu_us": sum(used.values()) / count * 1e6,
                    "tokens_an_event": count / sum(len(stream.pieces) for stream in streams),
                    **(_added(streams) if rate else {}),
                }

            return measure

        each = {rate: max(int(rate * settings.seconds / len(made)), 2) for rate in (settings.fast, settings.paced)}
        measures = {
            "fast": measured("fast", each[settings.fast], settings.fast),
            "paced": measured("paced", each[settings.paced], settings.paced),
            "burst": measured("burst", settings.burst, 0.0),
        }
        rounds = await interleaved(measures, settings.rounds, lambda line: console.print(line, style="dim"))
    samples = [flat(one) for one in rounds]
    return Report(figures=medians(samples), spread=spreads(samples), detail={"cpu_us": cpu})


async def _listen(made: list[HttpClient], tokens: int, rate: float) -> list[_Stream]:
    """One stream a client, all at once; raises RuntimeError for one that is not whole."""
    streams: list[_Stream] = []
    body = json.dumps({"model": "stream", "prompt": f"{tokens} {rate}", "stream": True}).encode()

    async def listen(client: HttpClient) -> None:
        stream = _Stream()
        streams.append(stream)
        await client.post("/v1/completions", body, stream.take)
        if len(stream.words) != tokens:
            raise RuntimeError(f"{len(stream.words)} of {tokens} words came")

    await by_clients([lambda client=client: listen(client) for client in made], len(made))
    return streams


def _added(streams: Sequence[_Stream]) -> Sample:
    """Milliseconds added on the way to each pause between two words; 0 where they came closer together than they were made."""
    added = [
        max((came - before) - (int(word) - int(word_before)), 0) / 1e6
        for stream in streams
        for (before, word_before), (came, word) in pairwise(stream.words)
    ]
    return {"added_p50_ms": percentile(added, 50), "added_p99_ms": percentile(added, 99)}


BENCH = Bench(
    name="stream",
    summary="Tokens that stream to many HTTP clients at once.",
    sizes={
        Size.SMALLEST: Settings(rounds=1, clients=4, fast=400.0, paced=100.0, seconds=0.5, burst=20, replicas=1),
        Size.QUICK: Settings(rounds=2, seconds=2.0, burst=150),
        Size.FULL: Settings(),
    },
    measure=run,
)

if __name__ == "__main__":
    BENCH.main()
