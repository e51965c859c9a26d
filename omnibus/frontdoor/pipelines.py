"""The deployed pipelines as the broker has them, read again when what is known is old."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from omnibus.broker.connection import Connection
from omnibus.pipeline.spec import PipelineSpec
from omnibus.registry.pipelines import list_deployed

MAX_AGE = 1.0
"""Seconds after which a new deployment is seen at the latest."""


class DeployedPipelines:
    """A `Pipelines` over a connection. While the broker is away it answers with what it knew last."""

    def __init__(self, connection: Connection, *, max_age: float = MAX_AGE) -> None:
        self._connection, self._max_age = connection, max_age
        self._specs: dict[str, PipelineSpec] = {}
        self._read_at: float | None = None
        self._reading = asyncio.Lock()

    async def get(self, name: str) -> PipelineSpec | None:
        """See `Pipelines`; raises BrokerUnavailable when nothing was ever read."""
        await self._refresh()
        return self._specs.get(name)

    async def all(self) -> Sequence[PipelineSpec]:
        """See `Pipelines`; raises BrokerUnavailable when nothing was ever read."""
        await self._refresh()
        return list(self._specs.values())

    async def _refresh(self) -> None:
        if self._is_fresh:
            return
        async with self._reading:  # whoever waited here finds it fresh
            if self._is_fresh:
                return
            deployed = await list_deployed(self._connection)
            self._specs = {found.spec.name: found.spec for found in deployed}
            self._read_at = time.monotonic()

    @property
    def _is_fresh(self) -> bool:
        if self._read_at is None:
            return False
        return not self._connection.connected or time.monotonic() - self._read_at < self._max_age
