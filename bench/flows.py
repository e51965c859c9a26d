"""The time to omni-tiny's first sound, and to its end: stages that stream into each other beside stages that wait, in one run.

    python -m bench.flows [--rounds 10] [--times 4] [--asked 64] [--width 8] [--seed 11]

Both are served at the same time, and asked in turn with the same sentences of two things, one request in flight: a figure is
the median of the sentences, each with the median of its answers. Then the chunked one has `width` requests in
flight. A player that begins with the first sound must never run dry. The last line is one JSON object, in seconds; exit
code 0 only if every bound is reached and every sound is right.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import openai
import soundfile
import yaml
from rich.console import Console
from rich.table import Table

from bench.measuring.load import percentile
from bench.served import served
from omnibus.pipeline.files import pipeline_file
from tools.omni_tiny.grading import grade_audio
from tools.omni_tiny.grammar import parse, sample_prompts

PIPELINE = "omni-tiny"
SPEAKING = ("thinker", "talker", "code2wav")
TWO_THINGS = 6
"""Symbols of a sentence of two things."""
FIRST_AUDIO, TOTAL, TAIL, WAVEFORM = 0.5, 1.0, 3.0, 0.01
"""Bounds: first audio and total beside the unchunked ones, p99 beside p50 at full width, the share of a sound that may differ."""
_HEADER = 44
_WARM_UP = 2
_TIMEOUT = 120.0

console = Console(stderr=True, highlight=False)


@dataclass(slots=True)
class SoundAnswer:
    """The sound of one answer as its caller got it."""

    prompt: str
    began: float = field(default_factory=time.perf_counter)
    pieces: list[tuple[float, int]] = field(default_factory=list)
    """(seconds since the request was sent, bytes)."""
    file: bytes = b""
    total: float = 0.0

    def take(self, data: bytes) -> None:
        self.pieces.append((time.perf_counter() - self.began, len(data)))
        self.file += data

    @property
    def first(self) -> float:
        """Seconds until there was something to play."""
        return self.pieces[0][0]

    @property
    def samples(self) -> np.ndarray:
        return np.asarray(soundfile.read(io.BytesIO(self.file), dtype="float32")[0])

    @property
    def underruns(self) -> int:
        """Pieces that came after a player had played all before, which began with the first one."""
        rate, played, late = soundfile.info(io.BytesIO(self.file)).samplerate, -_HEADER, 0
        for at, size in self.pieces:
            late += played > 0 and at > self.first + played / (2 * rate)
            played += size
        return late


Pairs = list[tuple[SoundAnswer, SoundAnswer]]
"""Answers to the same sentence, chunked and not."""


async def ask(client: openai.AsyncOpenAI, prompt: str) -> SoundAnswer:
    """Ask for text and sound, and take the sound as it comes."""
    answer = SoundAnswer(prompt)
    async with asyncio.timeout(_TIMEOUT):
        stream = await client.chat.completions.create(
            model=PIPELINE,
            messages=[{"role": "user", "content": prompt}],
            modalities=["text", "audio"],
            audio={"voice": "alloy", "format": "wav"},
            stream=True,
        )
        async for chunk in stream:
            audio = chunk.choices[0].delta.audio if chunk.choices else None
            if audio is not None and audio.data:
                answer.take(base64.b64decode(audio.data))
    answer.total = time.perf_counter() - answer.began
    return answer


async def measure(
    given: argparse.Namespace, chunked: openai.AsyncOpenAI, unchunked: openai.AsyncOpenAI
) -> tuple[Pairs, list[SoundAnswer]]:
    """Pairs of the same sentence, one request in flight; and the answers at full width."""
    prompts = two_things(max(given.rounds, given.asked), given.seed)
    for prompt in prompts[:_WARM_UP]:
        await asyncio.gather(ask(chunked, prompt), ask(unchunked, prompt))
    pairs = []
    for number, prompt in enumerate(prompts[: given.rounds] * given.times):
        if (number + number // given.rounds) % 2:
            late = await ask(unchunked, prompt)
            pairs.append((await ask(chunked, prompt), late))
        else:
            pairs.append((await ask(chunked, prompt), await ask(unchunked, prompt)))
    free = asyncio.Semaphore(given.width)

    async def one(prompt: str) -> SoundAnswer:
        async with free:
            return await ask(chunked, prompt)

    return pairs, await asyncio.gather(*map(one, prompts[: given.asked]))


def two_things(count: int, seed: int) -> list[str]:
    """So many sentences of two things; they repeat where the grammar has fewer."""
    found = [prompt for prompt in sample_prompts(400, seed) if len(parse(prompt).symbols) == TWO_THINGS]
    return [found[number % len(found)] for number in range(count)]


def report(pairs: Pairs, wide: Sequence[SoundAnswer]) -> dict[str, float]:
    """The figures of the last line."""
    early, late = [early for early, _ in pairs], [late for _, late in pairs]
    return {
        "first_audio_chunked": _typical(early, lambda answer: answer.first),
        "first_audio_unchunked": _typical(late, lambda answer: answer.first),
        "total_chunked": _typical(early, lambda answer: answer.total),
        "total_unchunked": _typical(late, lambda answer: answer.total),
        "underruns": sum(answer.underruns for answer in (*wide, *early)),
    }


def _typical(answers: Sequence[SoundAnswer], seconds: Callable[[SoundAnswer], float]) -> float:
    """The median of the sentences, each with the median of its answers."""
    of_sentence: dict[str, list[float]] = {}
    for answer in answers:
        of_sentence.setdefault(answer.prompt, []).append(seconds(answer))
    return round(median(map(median, of_sentence.values())), 4)


def faults(pairs: Pairs, wide: Sequence[SoundAnswer], line: dict[str, float]) -> list[str]:
    """The bounds that are missed, and the sounds that are wrong."""
    firsts = [answer.first for answer in wide]
    p50, p99 = median(firsts), percentile(firsts, 99)
    table = Table("", "seconds", title="time to the first sound", title_justify="left")
    for name, value in ({**line, f"p50, {len(wide)} requests in flight together": p50, "p99": p99}).items():
        table.add_row(name, f"{value:.4g}")
    console.print(table)
    found = [
        f"{name}: {value:.2f} times the unchunked, at most {most}"
        for name, value, most in (
            ("first audio", line["first_audio_chunked"] / line["first_audio_unchunked"], FIRST_AUDIO),
            ("total", line["total_chunked"] / line["total_unchunked"], TOTAL),
        )
        if value > most
    ]
    found += [f"first audio: p99 is {p99 / p50:.1f} times p50, at most {TAIL:g}"] if p99 > TAIL * p50 else []
    found += ["a player ran dry"] if line["underruns"] else []
    for early, late in pairs:
        if early.samples.shape != late.samples.shape or _difference(early.samples, late.samples) > WAVEFORM:
            found.append(f"the chunked sound is another: {early.prompt!r}")
    for answer in (*wide, *(one for pair in pairs for one in pair)):
        if not (grade := grade_audio(answer.prompt, answer.file)):
            found.append(f"wrong sound: {answer.prompt!r}: {grade.reason}")
    return found


def _difference(samples: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(samples - expected) / np.linalg.norm(expected))


def pipelines() -> tuple[str, str]:
    """The stages of the shipped pipeline that a sound needs, chunked and not."""
    spec: dict[str, Any] = yaml.safe_load(pipeline_file(PIPELINE).read_text())
    spec["stages"] = [stage for stage in spec["stages"] if stage["name"] in SPEAKING]
    kept = {stage["stage_id"] for stage in spec["stages"]}
    spec["edges"] = [edge for edge in spec.get("edges", ()) if {edge["source"], edge["target"]} <= kept]
    whole = {**spec, "edges": [{**edge, "mode": "whole"} for edge in spec["edges"]]}
    return yaml.safe_dump(spec), yaml.safe_dump(whole)


async def _run(given: argparse.Namespace, early: str, late: str) -> tuple[Pairs, list[SoundAnswer]]:
    def client(url: str) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

    async with client(early) as chunked, client(late) as unchunked:
        return await measure(given, chunked, unchunked)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.flows", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10, help="sentences, one request in flight")
    parser.add_argument("--times", type=int, default=4, help="rounds of these sentences")
    parser.add_argument("--asked", type=int, default=64, help="requests with many in flight")
    parser.add_argument("--width", type=int, default=8, help="requests in flight then")
    parser.add_argument("--seed", type=int, default=11, help="seed of the sentences")
    given = parser.parse_args()
    chunked, whole = pipelines()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="omnibus-bench-")))
        with console.status("starting"):
            early = stack.enter_context(served(chunked, folder / "chunked", front_door=True))
            late = stack.enter_context(served(whole, folder / "whole", front_door=True))
        pairs, wide = asyncio.run(_run(given, early.url, late.url))
    line = report(pairs, wide)
    wrong = faults(pairs, wide, line)
    for fault in wrong:
        console.print(fault, style="red")
    print(json.dumps(line))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
