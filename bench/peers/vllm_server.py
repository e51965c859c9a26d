"""vLLM's own OpenAI server, with the engine arguments that a stage of ours gets, as a child process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.request import urlopen

from omnibus.broker.listening import free_port
from omnibus.lineage import terminate_alive_proc
from omnibus.workers.engines.vllm.arguments import environment

_START, _STOP = 240.0, 30.0
MODEL = "llm"
"""The name that both servers give the model."""


@contextmanager
def running(checkpoint: str, engine_args: Mapping[str, object], folder: Path) -> Iterator[str]:
    """Its URL, once it is healthy; raises RuntimeError with the end of its log when it is not."""
    folder.mkdir(parents=True, exist_ok=True)
    port, log = free_port(), folder / "vllm.log"
    words = ("--model", checkpoint, "--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(port))
    flags = [word for name, value in engine_args.items() for word in _flag(name, value)]
    with log.open("wb") as out:
        process = subprocess.Popen(
            (
                sys.executable,
                "-m",
                "vllm.entrypoints.openai.api_server",
                *words,
                *flags,
                "--disable-uvicorn-access-log",
            ),
            env={**environment(), **os.environ, "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    try:
        _await_healthy(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        terminate_alive_proc(process, _STOP)


def _flag(name: str, value: object) -> tuple[str, ...]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return (f"--{'' if value else 'no-'}{flag}",)
    return (f"--{flag}", str(value))


def _await_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + _START
    while time.monotonic() < until and process.poll() is None:
        with suppress(OSError), urlopen(url, timeout=2) as answer:
            if answer.status == 200:
                return
        time.sleep(0.2)  # its health can only be asked for
    raise RuntimeError(f"vLLM's own server did not start:\n{log.read_text(errors='replace')[-3000:]}")
