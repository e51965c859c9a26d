"""How often omni-tiny is right: sentences through the whole pipe, concurrently over HTTP, judged.

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

from omnibus.cli.serving import serving
from omnibus.omni_tiny import judges
from omnibus.omni_tiny.grammar import held_out, parse, sample_prompts

PIPELINE = "omni-tiny"
BARS = {"text": 0.95, "image": 0.95, "audio": 0.95, "all": 0.95, "all_held_out": 0.90}
_ANSWER_TIMEOUT = 300.0

console = Console(stderr=True, highlight=False)


@dataclass(frozen=True, slots=True)
class Judged:
    """One sentence, and what is wrong with its answer."""

    prompt: str
    wrong: dict[str, str]
    """By modality; right ones are absent."""

    @property
    def is_held_out(self) -> bool:
        return parse(self.prompt) in held_out()


async def ask_all(url: str, prompts: Sequence[str], seed: int, width: int) -> list[Judged]:
    """Send every sentence, `width` at a time, the n-th with the seed `seed + n`; judge the answers."""
    free = asyncio.Semaphore(width)

    async def ask(number: int, prompt: str) -> Judged:
        async with free:
            return Judged(prompt, await _wrong(client, prompt, seed + number))

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
            extra_body={"modalities": ["text", "image", "audio"]},
        )
    except openai.APIError as error:
        return dict.fromkeys(("text", "image", "audio"), f"no answer: {error}")
    message = completion.choices[0].message
    parts: dict[str, Any] = {part["type"]: part for part in message.content}  # more than text comes as a list of parts
    verdicts = {
        "text": judges.judge_text(prompt, parts["text"]["text"]),
        "image": judges.judge_image(prompt, _decoded(parts["image_url"]["image_url"]["url"])),
        "audio": judges.judge_audio(prompt, base64.b64decode(message.audio.data)),
    }
    return {modality: verdict.reason for modality, verdict in verdicts.items() if not verdict}


def shares(judged: Sequence[Judged], seconds: float) -> dict[str, float]:
    """What the last line says."""
    unseen = [each for each in judged if each.is_held_out]
    right = {modality: _share(judged, modality) for modality in ("text", "image", "audio")}
    return {
        "prompts": len(judged),
        **right,
        "all": _share(judged),
        "all_held_out": _share(unseen),
        "seconds": round(seconds, 1),
    }


def _share(judged: Sequence[Judged], modality: str | None = None) -> float:
    right = sum(modality not in each.wrong if modality else not each.wrong for each in judged)
    return round(right / len(judged), 4) if judged else 0.0


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
        judged = asyncio.run(ask_all(url, prompts, given.seed, given.width))
        seconds = time.monotonic() - started
    for each in judged:
        for modality, reason in each.wrong.items():
            console.print(f"wrong {modality}: {each.prompt!r}: {reason}")
    report = shares(judged, seconds)
    print(json.dumps(report))
    return 0 if all(report[name] >= bar for name, bar in BARS.items()) else 1


def _own_server(stack: ExitStack) -> str:
    state_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="omnibus-bench-")))
    with console.status("starting") as status:
        server = serving(PIPELINE, "--port", "0", "--nats-port", "0", state_dir=state_dir, say=status.update)
        return stack.enter_context(server).url


if __name__ == "__main__":
    sys.exit(main())
