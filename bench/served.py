"""Pipelines that a bench serves as an operator would: `omnibus serve`, each replica, orchestrator and broker its own process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from omnibus.broker.connection import Connection, connect
from omnibus.broker.discovery import running_server
from omnibus.client.producer import Producer
from omnibus.lineage import PARENT_VARIABLE, terminate_alive_proc
from tools.serving import Serving, serving

_STOP = 20.0
_QUIET = ("--log-level", "warning")


@contextmanager
def served(
    text: str, folder: Path, *flags: str, beside: Serving | None = None, front_door: bool = False
) -> Iterator[Serving]:
    """Serve a pipeline file's text over a broker of its own, or the broker of another one that is served."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "pipeline.yaml"
    file.write_text(text)
    door = ("--port", "0") if front_door else ("--no-frontdoor",)
    broker = ("--nats", beside.nats_url) if beside else ("--nats-port", "0")
    with (
        patch.dict(os.environ, _system_url(beside)),
        serving(str(file), *door, *_QUIET, *broker, *flags, state_dir=folder / "state") as running,
    ):
        yield replace(running, nats_url=beside.nats_url) if beside else running  # it is announced without its password


@contextmanager
def another(command: str, pipeline: str, running: Serving, *flags: str) -> Iterator[int]:
    """Run one more process beside a served pipeline, such as a second orchestrator; its process id."""
    state = running.log.parent
    words = (sys.executable, "-m", "omnibus.cli", command, "--pipeline", pipeline, "--state-dir", str(state), *_QUIET)
    with (state / f"{command}.log").open("ab") as log:
        process = subprocess.Popen(
            (*words, *flags),
            env={**os.environ, PARENT_VARIABLE: str(os.getpid())},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield process.pid
    finally:
        terminate_alive_proc(process, _STOP)


@asynccontextmanager
async def producing(running: Serving) -> AsyncIterator[tuple[Connection, Producer]]:
    """A client of a served pipeline."""
    async with connect(running.nats_url, name="bench") as connection, Producer(connection) as producer:
        yield connection, producer


def _system_url(beside: Serving | None) -> dict[str, str]:
    """The variable by which orchestrators of another broker's owner hear of lost connections."""
    server = running_server(beside.log.parent) if beside is not None else None
    return {"OMNIBUS_NATS_SYSTEM_URL": server.system_url} if server is not None else {}
