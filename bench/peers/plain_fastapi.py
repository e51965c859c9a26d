"""A bare FastAPI app that answers a completion at once, `python -m bench.peers.plain_fastapi PORT`: the cost of HTTP itself.

It runs on the server that the front door runs on: uvicorn with uvloop and httptools, without an access log.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from socket import create_connection

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from omnibus.broker.listening import free_port
from omnibus.lineage import terminate_alive_proc

_START = 20.0
app = FastAPI()


class Body(BaseModel):
    model: str
    prompt: str


@app.post("/v1/completions")
async def complete(body: Body) -> dict[str, object]:
    """Answer with the prompt, in the form of a completion."""
    choices = [{"index": 0, "text": body.prompt, "logprobs": None, "finish_reason": "stop"}]
    return {"id": "cmpl-0", "object": "text_completion", "created": 0, "model": body.model, "choices": choices}


@contextmanager
def running() -> Iterator[tuple[str, int]]:
    """Its URL and its process id."""
    port = free_port()
    process = subprocess.Popen((sys.executable, "-m", "bench.peers.plain_fastapi", str(port)))
    try:
        _await_open(port, process)
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        terminate_alive_proc(process, _START)


def _await_open(port: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _START
    while time.monotonic() < until and process.poll() is None:
        with suppress(OSError), create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)  # a port cannot be awaited
    raise RuntimeError("the bare FastAPI app did not start")


if __name__ == "__main__":
    uvicorn.run(
        app, host="127.0.0.1", port=int(sys.argv[1]), loop="uvloop", http="httptools", access_log=False, log_level="error"
    )  # fmt: skip
