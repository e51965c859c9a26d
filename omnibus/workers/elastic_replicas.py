"""Replicas of a stage on this machine whose number changes: each process under a supervisor of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from omnibus.errors import StageStartError
from omnibus.observability.metrics import Metrics
from omnibus.workers.supervisor import DeathHook, ProcessSpec, Supervisor


class ElasticReplicas:
    """Runs as many of its processes as `scale` says, until `stop`. One that is not wanted any more finishes what it has.

    One that leaves by itself, as an operator had it end for good, is not started again, and another in its stead only by `scale`.
    """

    def __init__(
        self,
        specs: Sequence[ProcessSpec],
        *,
        grace: float,
        on_death: DeathHook | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """`specs` are those of all replicas that there may ever be, each with its share of the devices; else as of Supervisor."""
        self._specs, self._grace, self._on_death, self._metrics = specs, grace, on_death, metrics
        self._running: dict[int, Supervisor] = {}
        """By place among the specs; those that end are in it until they have ended."""
        self._ending: set[int] = set()
        self._ended: set[int] = set()
        """Places whose process was ended for good."""
        self._wanted = 0
        self._group, self._is_open = asyncio.TaskGroup(), False
        self._stopping = asyncio.Event()
        self._failure: StageStartError | None = None

    async def run(self) -> None:
        """Return when all have ended after `stop`, or each for good; raises StageStartError when one could never start."""
        async with self._group:
            self._is_open = True
            self._reconcile()
            await self._stopping.wait()
            self._is_open, self._wanted = False, 0
            self._reconcile()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Ask all to end; idempotent, safe in a signal handler of the loop."""
        self._stopping.set()

    def scale(self, wanted: int) -> None:
        """Have so many run, while `run` does: start those that are missing, let those end that came last.

        No more than there are specs, but for those of processes that ended for good.
        """
        self._wanted = min(wanted, len(self._specs) - len(self._ended))
        if self._is_open:
            self._reconcile()

    @property
    def running(self) -> int:
        """Those that run and are not to end."""
        return len(self._running.keys() - self._ending)

    @property
    def ended(self) -> int:
        """Those that were ended for good."""
        return len(self._ended)

    @property
    def instances(self) -> set[str]:
        """Those of processes that run now."""
        return {instance for supervisor in self._running.values() for instance in supervisor.instances}

    def kill(self, instance: str) -> None:
        """SIGKILL a process, as Supervisor.kill."""
        for supervisor in self._running.values():
            supervisor.kill(instance)

    def _reconcile(self) -> None:
        kept = sorted(self._running.keys() - self._ending)
        for place in kept[self._wanted :]:
            self._ending.add(place)
            self._running[place].stop()
        # A place whose process still ends is taken when it has: its devices are not free before.
        free = [place for place in range(len(self._specs)) if place not in self._running.keys() | self._ended]
        for place in free[: max(self._wanted - len(kept), 0)]:
            supervisor = Supervisor(
                [self._specs[place]], grace=self._grace, on_death=self._on_death, metrics=self._metrics
            )  # fmt: skip
            self._running[place] = supervisor
            self._group.create_task(self._keep(place, supervisor), name=f"elastic-{self._specs[place].name}")

    async def _keep(self, place: int, supervisor: Supervisor) -> None:
        try:
            await supervisor.run()
            if self._is_open and place not in self._ending:
                self._end_for_good(place)
        except StageStartError as error:
            self._failure = error
            self.stop()
        finally:
            del self._running[place]
            self._ending.discard(place)
        if self._is_open:
            self._reconcile()

    def _end_for_good(self, place: int) -> None:
        self._ended.add(place)
        self._wanted = max(self._wanted - 1, 0)
        if len(self._ended) == len(self._specs):
            self.stop()
