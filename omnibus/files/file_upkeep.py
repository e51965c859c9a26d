"""Removal of expired bytes from the operator's storage, by one front door each hour, whichever comes first."""

from __future__ import annotations

import asyncio
import random
import secrets
from typing import Self

from omnibus.broker.bucket import Bucket
from omnibus.broker.connection import Connection
from omnibus.errors import BrokerError, RevisionConflict
from omnibus.files.stored_bodies import StoredBodies
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.observability.task_root import task_root
from omnibus.wire import stores

EVERY = 3600.0
"""Seconds between two looks at the storage, by all front doors together."""
_TURN = "=upkeep"
_log = get_logger(__name__)


class FileUpkeep:
    """Looks at a storage each hour, in an `async with`; without one it does nothing."""

    def __init__(self, connection: Connection, bodies: StoredBodies | None) -> None:
        self._connection, self._bodies = connection, bodies
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._bodies is not None:
            self._task = asyncio.create_task(self._run(self._bodies), name="file upkeep")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self, bodies: StoredBodies) -> None:
        while True:
            await asyncio.sleep(EVERY * random.uniform(0.05, 0.15))  # noqa: S311 so that front doors take turns
            with task_root("files", self._connection.metrics):
                await self.look(bodies)

    async def look(self, bodies: StoredBodies) -> None:
        """Remove what has expired, unless another front door has done so within the hour."""
        bucket = Bucket(self._connection, stores.FILES_BUCKET)
        try:
            await bucket.create(_TURN, secrets.token_bytes(8), ttl=EVERY)
            removed = await bodies.remove_expired(self._connection.clock.now())
        except RevisionConflict:
            return
        except BrokerError as error:
            _log.warning(LogEvent.FILES_NOT_REMOVED, error=error.message)
            return
        _log.debug(LogEvent.FILES_REMOVED, files=removed)
