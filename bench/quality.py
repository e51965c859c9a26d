"""The share of omni-tiny's answers that are right: sentences through the whole pipe, concurrently over HTTP, graded.

    python -m bench.quality [--prompts 64] [--seed 11] [--width 32] [--url http://127.0.0.1:8000]

Half of the sentences describe scenes that no training has seen. Without --url a server of its own is started. The last line is
one JSON object; exit code 0 only if every share reaches its bar.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
from rich.console import Console
from rich.progress import track

from tools.omni_tiny import grading
from tools.omni_tiny.grammar import held_out, parse, sample_prompts
from tools.serving import serving

PIPELINE = "omni-tiny"
MODALITIES = ("text", "image", "audio", "video")
BARS = {**dict.fromkeys((*MODALITIES, "all"), 0.95), "all_held_out": 0.90}
_ANSWER_TIMEOUT = 300.0

console = Console(stderr=True, highlight=False)


@dataclass(frozen=True, slots=True)
class Graded:
    """One sentence, and the faults of its answer."""

    prompt: str
    wrong: dict[str, str]
    """By modality; right ones are absent."""

    @property
    def is_held_out(self) -> bool:
        return parse(self.prompt) in held_out()


async def ask_all(url: str, prompts: Sequence[str], seed: int, width: int) -> list[Graded]:
    """Send every sentence, `width` at a time, the n-th with the seed `seed + n`; grade the answers."""
    free = asyncio.Semaphore(width)

    async def ask(number: int, prompt: str) -> Graded:
        async with free:
            return Graded(prompt, await _wrong(client, prompt, seed + number))

    async with openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key="none", timeout=_ANSWER_TIMEOUT, max_retries=0
    ) as client:
        asked = [asyncio.create_task(ask(number, prompt)) for number, prompt in enumerate(prompts)]
        for task in track(asyncio.as_completed(asked), "asking", len(asked), console=console, transient=True):
            await task
    return [task.result() for task in asked]


async def _wrong(client: openai.AsyncOpenAI, prompt: str, seed: int) -> dict[str, str]:
    try:
        completion = await client.chat.completions.create(
            model=PIPELINE,
            messages=[{"role": "user", "content": prompt}],
            seed=seed,
            extra_body={"modalities": MODALITIES},
        )
    except openai.APIError as error:
        return dict.fromkeys(MODALITIES, f"no answer: {error}")
    message = completion.choices[0].message
    parts: dict[str, Any] = {part["type"]: part for part in message.content}  # more than text comes as a list of parts
    grades = {
        "text": grading.grade_text(prompt, parts["text"]["text"]),
        "image": grading.grade_image(prompt, _decoded(parts["image_url"]["image_url"]["url"])),
        "audio": grading.grade_audio(prompt, base64.b64decode(message.audio.data)),
        "video": grading.grade_video(prompt, _decoded(parts["file"]["file"]["file_data"])),
    }
    return {modality: grade.reason for modality, grade in grades.items() if not grade}


def shares(graded: Sequence[Graded], seconds: float) -> dict[str, float]:
    """Summarise the grades for the last line."""
    unseen = [each for each in graded if each.is_held_out]
    right = {modality: _share(graded, modality) for modality in MODALITIES}
    return {
        "prompts": len(graded),
        **right,
        "all": _share(graded),
        "all_held_out": _share(unseen),
        "seconds": round(seconds, 1),
    }


def _share(graded: Sequence[Graded], modality: str | None = None) -> float:
    right = sum(modality not in each.wrong if modality else not each.wrong for each in graded)
    return round(right / len(graded), 4) if graded else 0.0


def _decoded(data_url: str) -> bytes:
    return base64.b64decode(data_url.partition(",")[2])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.quality", description="How often omni-tiny is right.")
    parser.add_argument("--prompts", type=int, default=64, help="sentences, half of them of unseen scenes")
    parser.add_argument("--seed", type=int, default=11, help="seed of the sentences and of their answers")
    parser.add_argument("--width", type=int, default=32, help="requests in flight")
    parser.add_argument("--url", help="a front door that serves omni-tiny; by default one is started")
    given = parser.parse_args()
    prompts = sample_prompts(given.prompts, given.seed)
    console.print(f"{len(prompts)} sentences, seed {given.seed}; answers with seeds {given.seed} and up")
    with ExitStack() as stack:
        url = given.url or _own_server(stack)
        started = time.monotonic()
        graded = asyncio.run(ask_all(url, prompts, given.seed, given.width))
        seconds = time.monotonic() - started
    for each in graded:
        for modality, reason in each.wrong.items():
            console.print(f"wrong {modality}: {each.prompt!r}: {reason}")
    report = shares(graded, seconds)
    print(json.dumps(report))
    return 0 if all(report[name] >= bar for name, bar in BARS.items()) else 1


def _own_server(stack: ExitStack) -> str:
    state_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="omnibus-bench-")))
    with console.status("starting") as status:
        server = serving(PIPELINE, "--port", "0", "--nats-port", "0", state_dir=state_dir, say=status.update)
        return stack.enter_context(server).url


if __name__ == "__main__":
    sys.exit(main())
