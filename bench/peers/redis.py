"""A redis-server of a bench's own: append-only file, flushed to the disk every second, as the embedded broker's is."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omnibus.broker.listening import free_port
from omnibus.lineage import terminate_alive_proc

_START = 10.0


def binary() -> str | None:
    """Path of the server: REDIS_SERVER, else the one in the path."""
    return os.environ.get("REDIS_SERVER") or shutil.which("redis-server")


@contextmanager
def running(folder: Path) -> Iterator[tuple[str, int]]:
    """Its URL and its process id."""
    program, port = binary(), free_port()
    assert program is not None, "ask binary() first"
    folder.mkdir(parents=True, exist_ok=True)
    options = ("--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "", "--appendonly", "yes")
    log = folder / "redis.log"
    with log.open("wb") as out:
        process = subprocess.Popen((program, *options, "--appendfsync", "everysec"), stdout=out, stderr=out)
    try:
        until = time.monotonic() + _START
        while b"Ready to accept connections" not in log.read_bytes():
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"redis-server did not start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.02)  # it has no other way to say that it is ready
        yield f"redis://127.0.0.1:{port}", process.pid
    finally:
        terminate_alive_proc(process, _START)
