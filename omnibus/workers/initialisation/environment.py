"""The environment in which a stage's engine starts, where it starts inside a process that has other things to do."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager

from omnibus.pipeline.devices import visible_devices_env

_PAUSE = 0.02
# The environment is the process's own, and so is who may change it: replicas of several event loops take turns.
_turn = threading.Lock()


@contextmanager
def stage_runtime_env(env: Mapping[str, str]) -> Iterator[None]:
    """Set these variables for as long as the context lasts; then they are what they were."""
    before = {name: os.environ.get(name) for name in env}
    os.environ.update(env)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def setup_stage_devices(devices: str) -> AbstractContextManager[None]:
    """Narrow what an engine sees to these devices while the context lasts; empty `devices` narrow nothing."""
    return stage_runtime_env(visible_devices_env(devices))


@asynccontextmanager
async def engine_environment(env: Mapping[str, str], devices: str) -> AsyncIterator[None]:
    """The stage's variables and devices while an engine starts; other starts in this process wait for their turn.

    A process that was started with this environment already, as a supervisor does, is left alone.
    """
    wanted = {**env, **visible_devices_env(devices)}
    if all(os.environ.get(name) == value for name, value in wanted.items()):
        yield
        return
    while not _turn.acquire(blocking=False):  # noqa: ASYNC110 the holder of the turn may run on another event loop
        await asyncio.sleep(_PAUSE)
    try:
        with stage_runtime_env(env), setup_stage_devices(devices):
            yield
    finally:
        _turn.release()
