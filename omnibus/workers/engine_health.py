"""Whether the engine of a replica can still serve: it says that it is dead, makes no progress, or fails when it is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Mapping

from omnibus.errors import EngineDead, EngineStalled, OmnibusError, RequestError
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.pipeline.engines import engine_kind
from omnibus.pipeline.spec import CanarySpec, StageSpec
from omnibus.wire.failure import Failure, describe
from omnibus.workers.containment import contained
from omnibus.workers.engines.threads import within
from omnibus.workers.execution import Execution
from omnibus.workers.task_slots import TaskSlots

LOOKS = 10
"""Looks in a row at which an execution must have come no further to count as stuck."""

log = get_logger(__name__)


class Stalls:
    """Which executions make no progress. Pure.

    Looks are counted, and not time: a process that was suspended sees progress again before it counts on.
    """

    def __init__(self) -> None:
        self._looks: dict[Hashable, tuple[int, int]] = {}

    def look(self, progress: Mapping[Hashable, int]) -> list[Hashable]:
        """Those that are as far as they were LOOKS looks ago, given how far each one that runs has come."""
        before, self._looks = self._looks, {}
        for one, mark in progress.items():
            known, count = before.get(one, (mark, -1))
            self._looks[one] = (mark, count + 1 if known == mark else 0)
        return [one for one, (_, count) in self._looks.items() if count >= LOOKS]


class EngineHealth:
    """Watches one engine, in `run`; the first cause of its death counts."""

    def __init__(
        self, stage: StageSpec, execution: Execution, slots: TaskSlots, *, on_death: Callable[[], None]
    ) -> None:
        """`on_death` is called once, when the engine cannot serve any more."""
        self._stage, self._execution, self._slots, self._on_death = stage, execution, slots, on_death
        self._engine = execution.engine
        self.death: EngineDead | None = None
        """Why it cannot serve."""

    def check(self) -> None:
        """Ask the engine whether it is dead."""
        if (death := self._engine.dead()) is not None:
            self.fail(death)

    def fail(self, cause: Exception) -> None:
        """It cannot serve any more."""
        if self.death is None:
            reason = cause.message if isinstance(cause, OmnibusError) else describe(cause)
            self.death = cause if isinstance(cause, EngineDead) else EngineDead(self._named(reason))
            self._on_death()

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as watches:
            watches.create_task(self._wait_dead(), name="engine-death")
            watches.create_task(self._watch_progress(), name="engine-progress")
            if self._stage.canary is not None:
                watches.create_task(self._ask_canaries(self._stage.canary), name="canary")

    async def _wait_dead(self) -> None:
        self.fail(await contained(self._engine.wait_dead()))  # the error of an engine that cannot even say so, too

    async def _watch_progress(self) -> None:
        timeout = self._stage.stall_timeout or engine_kind(self._stage.engine).stall_timeout
        stalls = Stalls()
        while True:
            await asyncio.sleep(timeout / LOOKS)
            if stalls.look(self._execution.progress()):
                self.fail(EngineStalled(self._named(f"no progress for {timeout:g} s")))

    async def _ask_canaries(self, canary: CanarySpec) -> None:
        while True:
            await asyncio.sleep(canary.interval)
            if self._slots.borrow():
                try:
                    await self._ask(canary)
                finally:
                    self._slots.freed()

    async def _ask(self, canary: CanarySpec) -> None:
        try:
            answer = await within(canary.timeout, self._execution.probe(), "canary")
        except TimeoutError:
            self.fail(EngineStalled(self._named(f"the canary was not answered within {canary.timeout:g} s")))
            return
        if isinstance(answer, RequestError):  # declared so that no replica could answer it
            log.warning(LogEvent.CANARY_REFUSED, stage=self._stage.stage_id, error=Failure.of(answer).message)
        elif isinstance(answer, OmnibusError):
            self.fail(EngineDead(self._named(f"the canary failed: {Failure.of(answer).message}")))

    def _named(self, what: str) -> str:
        return f"stage {self._stage.name!r}: {what}"
