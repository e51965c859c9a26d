"""`omnibus serve` on a pipeline of `sim` stages, and the command line beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SIM_PIPELINE = """
name: simple
deadline: 30s
heartbeat_timeout: 2s
stages:
- {stage_id: 0, name: writer, engine: sim, slots: 8, final_output: true, final_output_type: text,
   engine_args: {outputs: {text: text}, token_rate: 200, hang_on: {rid: ^hang}, reject_on: {rid: ^reject},
                 fail_on: {rid: twice, attempts: [1, 2]}}}
- {stage_id: 1, name: painter, engine: sim, slots: 8, input_sources: [0], final_output: true, final_output_type: image,
   engine_args: {outputs: {image: image}, steps: 4, latency: 0.02}}
- {stage_id: 2, name: speaker, engine: sim, slots: 8, input_sources: [0], final_output: true, final_output_type: audio,
   engine_args: {outputs: {audio: audio}, size: 800}}
"""
"""A request whose id begins with `hang` never ends by itself, with `reject` it is refused by its first stage; that fails twice at
one whose id has `twice` in it."""


def write_pipeline(folder: Path, text: str = SIM_PIPELINE) -> Path:
    """A pipeline file in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "pipeline.yaml"
    file.write_text(text)
    return file


def omnibus(*words: str, nats: str, stdin: str = "", timeout: float = 30.0) -> subprocess.CompletedProcess[str]:
    """Run a command against a broker, to its end."""
    return subprocess.run(
        command_line(*words),
        env=environment(nats),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def start(*words: str, nats: str, log: Path) -> subprocess.Popen[bytes]:
    """Start a command against a broker; the caller ends it."""
    with log.open("ab") as out:
        return subprocess.Popen(
            command_line(*words), env=environment(nats), stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )


def command_line(*words: str) -> list[str]:
    return [sys.executable, "-m", "omnibus.cli", *words]


def environment(nats: str) -> dict[str, str]:
    return {**os.environ, "OMNIBUS_NATS_URL": nats}
