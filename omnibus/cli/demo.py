"""`omnibus demo`: one sentence through the whole pipe, judged."""

from __future__ import annotations

import base64
import json
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from omnibus.cli.serving import Serving

PROMPT = "draw a red circle left of a blue square"
PIPELINE = "omni-tiny"
_ANSWER_TIMEOUT = 120.0


@dataclass(slots=True)
class _Answer:
    """What came back through the front door."""

    text: str = ""
    image: bytes = b""
    audio: bytes = b""


@click.command("demo")
@click.option("--out", "-o", default="out/demo", type=click.Path(file_okay=False, path_type=Path), show_default=True,
              help="Where the image and the audio are saved.")  # fmt: skip
@click.argument("prompt", default=PROMPT)
def command(out: Path, prompt: str) -> int:
    """Start omni-tiny on free ports, ask for PROMPT, judge what comes back, and stop everything.

    The last line is one JSON object. Exit code 0 only if text, image and audio are right.
    """
    from rich.console import Console  # noqa: PLC0415 commands import when they run

    console, started = Console(stderr=True, highlight=False, soft_wrap=True), time.monotonic()
    with ExitStack() as stack:
        server = _start(stack, console)
        console.print(f"{PIPELINE} is served at {server.url}; asking: {prompt}")
        answer = _ask(server.url, prompt)
    out.mkdir(parents=True, exist_ok=True)
    image, audio = out / "image.png", out / "audio.wav"
    image.write_bytes(answer.image)
    audio.write_bytes(answer.audio)
    console.print(f"image: {image}\naudio: {audio}")
    verdicts = _judge(prompt, answer, console)
    report = {"text": answer.text, "image": str(image), "audio": str(audio), "image_ok": verdicts["image"],
              "audio_ok": verdicts["audio"], "seconds": round(time.monotonic() - started, 1)}  # fmt: skip
    click.echo(json.dumps(report))
    return 0 if all(verdicts.values()) else 1


def _start(stack: ExitStack, console: Console) -> Serving:
    from omnibus.cli.serving import serving  # noqa: PLC0415

    state_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="omnibus-demo-")))
    with console.status("starting") as status:
        server = serving(PIPELINE, "--port", "0", "--nats-port", "0", state_dir=state_dir, say=status.update)
        return stack.enter_context(server)


def _ask(url: str, prompt: str) -> _Answer:
    """Stream the answer: the text to stdout as it comes."""
    answer = _Answer()
    for delta in _deltas(url, prompt):
        content = delta.get("content")
        if isinstance(content, str):
            answer.text += content
            sys.stdout.write(content)
            sys.stdout.flush()
        for part in content if isinstance(content, list) else []:
            answer.image = base64.b64decode(part["image_url"]["url"].partition(",")[2])
        if delta.get("audio"):
            answer.audio = base64.b64decode(delta["audio"]["data"])
    sys.stdout.write("\n")
    return answer


def _deltas(url: str, prompt: str) -> Iterator[dict[str, Any]]:
    """Deltas of a streamed chat; raises OmnibusError with the server's words when it fails."""
    from omnibus.errors import OmnibusError  # noqa: PLC0415

    body = {
        "model": PIPELINE,
        "messages": [{"role": "user", "content": prompt}],
        "modalities": ["text", "image", "audio"],
        "stream": True,
    }
    request = urllib.request.Request(  # noqa: S310 our own address
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=_ANSWER_TIMEOUT) as response:  # noqa: S310
            for line in response:
                data = line.removeprefix(b"data:").strip()
                if line.startswith(b"data:") and data != b"[DONE]":
                    yield from _delta(json.loads(data))
    except urllib.error.HTTPError as error:
        raise OmnibusError(f"the front door answered {error.code}: {error.read().decode(errors='replace')}") from error
    except OSError as error:
        raise OmnibusError(f"the front door's answer broke off: {error}") from error


def _delta(chunk: dict[str, Any]) -> Iterator[dict[str, Any]]:
    from omnibus.errors import OmnibusError  # noqa: PLC0415

    if "error" in chunk:
        raise OmnibusError(f"the request failed: {chunk['error']['message']}")
    for choice in chunk["choices"]:
        yield choice["delta"]


def _judge(prompt: str, answer: _Answer, console: Console) -> dict[str, bool]:
    from omnibus.omni_tiny import judges  # noqa: PLC0415

    verdicts = {
        "text": judges.judge_text(prompt, answer.text),
        "image": judges.judge_image(prompt, answer.image),
        "audio": judges.judge_audio(prompt, answer.audio),
    }
    for what, failure_detector in verdicts.items():
        console.print(f"{what}: right" if failure_detector else f"{what}: wrong, {failure_detector.reason}")
    return {what: bool(failure_detector) for what, failure_detector in verdicts.items()}
