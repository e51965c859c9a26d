"""Keeps the number of a stage's replicas where its queue wants it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from omnibus.errors import OmnibusError
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.registry.scaling import ScalePolicy, ScaleState, scale

log = get_logger(__name__)

ReadLag = Callable[[], Awaitable[int]]
SetReplicas = Callable[[int], Awaitable[None]]


class Autoscaler:
    """Looks at a lag again and again, decides, and has the number set."""

    def __init__(
        self, stage: str, policy: ScalePolicy, read: ReadLag, set_replicas: SetReplicas,
        *, running: int = 0, ended: Callable[[], int] = lambda: 0,
    ) -> None:  # fmt: skip
        """`stage` is its name, for the log. `set_replicas` is called after each look, also with the same number.

        `running` are the replicas that there are now: they have a whole cooldown before any is stopped. `ended` says how many
        an operator has ended for good so far: the policy's bounds count so many less.
        """
        self._stage, self._policy, self._read, self._set = stage, policy, read, set_replicas
        self.state = ScaleState(wanted=running)
        self._count_ended, self._ended = ended, 0

    async def run(self, every: float) -> None:
        """Until cancelled. Where the lag cannot be read, or the number not be set, all stays as it is until the next look."""
        while True:
            try:
                await self.look(time.monotonic())
            except OmnibusError as error:
                log.warning(LogEvent.BROKER_ERROR, stage=self._stage, error=error.message)
            await asyncio.sleep(every)

    async def look(self, now: float) -> None:
        """Look once; raises OmnibusError."""
        lag = await self._read()
        before, self._ended, ended = self.state.wanted, self._count_ended(), self._ended
        state = self.state.without(self._ended - ended)
        self.state = scale(self._policy.without(self._ended), state, lag, now)
        if self.state.wanted != before:
            log.info(LogEvent.STAGE_SCALED, stage=self._stage, lag=lag, before=before, replicas=self.state.wanted)
        await self._set(self.state.wanted)
