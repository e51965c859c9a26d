"""Deployed pipelines, as commands find them."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import msgspec

from omnibus.broker.connection import Connection
from omnibus.broker.watch import Watch
from omnibus.errors import PipelineError
from omnibus.pipeline.loading import load_pipeline
from omnibus.pipeline.spec import PipelineSpec
from omnibus.registry.deployed_pipelines import load_deployed
from omnibus.wire import subjects

_PAUSE = 0.25


def is_file(wanted: str) -> bool:
    """Whether a `--pipeline` means a file, not a name."""
    return os.sep in wanted or wanted.endswith((".yaml", ".yml"))


async def find_pipeline(connection: Connection, wanted: str | None, *, wait: float = 0.0) -> PipelineSpec:
    """The deployed pipeline of this name (None: the only one there is), waiting up to `wait` seconds for it; or a file's.

    Raises PipelineError.
    """
    if wanted is not None and is_file(wanted):
        return load_pipeline(wanted)
    until = time.monotonic() + wait
    while True:
        try:
            return await load_deployed(connection, wanted)
        except PipelineError:
            if time.monotonic() > until:
                raise
        await asyncio.sleep(_PAUSE)  # the bucket may not exist yet, and then nothing can be watched


class DeployedPipelines:
    """A live view of all deployed pipelines, in an `async with`; empty until the first one is deployed."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._watch: Watch | None = None
        self._opening = asyncio.Lock()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def get(self, name: str) -> PipelineSpec | None:
        """The pipeline as it is deployed now; None when there is none. Raises BrokerError when nobody can say."""
        return next((spec for spec in await self.all() if spec.name == name), None)

    async def all(self) -> Sequence[PipelineSpec]:
        """Every deployed pipeline that this version can read, by name. Raises BrokerError when nobody can say."""
        watch = await self._opened()
        if watch is None:
            return ()
        entries = (entry for _, entry in sorted(watch.snapshot.items()))
        specs = (_decoded(entry.value) for entry in entries if entry.value is not None)
        return [spec for spec in specs if spec is not None]

    async def _opened(self) -> Watch | None:
        """The watch, from the moment on that there is a bucket to watch."""
        async with self._opening:
            if self._watch is None:
                bucket = subjects.PIPELINES_BUCKET
                if await self._connection.find(f"STREAM.INFO.KV_{bucket}") is None:
                    return None
                self._watch = await self._stack.enter_async_context(Watch(self._connection, bucket, keys="*"))
        return self._watch


def _decoded(data: bytes) -> PipelineSpec | None:
    try:
        return msgspec.msgpack.decode(data, type=PipelineSpec)
    except msgspec.DecodeError:
        return None
