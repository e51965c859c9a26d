"""Looks at the cluster, one after the other, for all who follow it: what the dashboard shows live."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol, Self

from omnibus.broker.connection import Connection
from omnibus.client.cluster_view import PipelineStatus, read_status
from omnibus.client.stage_times import SAMPLE, StageTimes, stage_times
from omnibus.errors import BrokerError, BrokerRefused, BrokerUnavailable
from omnibus.ledger.records import Ledger
from omnibus.pipeline.spec import PipelineSpec
from omnibus.registry.presence.replica_record import ReplicaRecord

EVERY = 0.5
"""Seconds between two looks, while anybody follows."""
LOOK_TIMEOUT = 2.0
"""Seconds that a look may take: what it does not know by then is an error for those who follow."""
_RATE_WINDOW = 5.0
"""Seconds that rates are taken over."""
_TIMES_EVERY = 2.0
"""Seconds between two looks at the times of stages, which read whole records."""


class Cluster(Protocol):
    """The parts that are looked at."""

    @property
    def connection(self) -> Connection: ...


@dataclass(frozen=True, slots=True)
class PipelineLook:
    """A pipeline at the moment of a look."""

    status: PipelineStatus
    before: PipelineStatus | None
    """Its status some seconds before, for rates; None in the first look."""
    times: Mapping[int, StageTimes]
    """By stage; none of a stage that has not run lately."""


@dataclass(slots=True)
class _Known:
    """The state of one pipeline that is kept from look to look."""

    history: deque[PipelineStatus] = field(default_factory=deque)
    """Bounded by the window of rates."""
    times: Mapping[int, StageTimes] = field(default_factory=dict)
    times_at: float = -_TIMES_EVERY


class ClusterFeed:
    """Looks at all deployed pipelines while anybody follows; those who do so at the same time share each look.

    In an `async with`, at whose end the streams of those who follow end, too: a server that stops waits for them.
    """

    def __init__(
        self,
        cluster: Cluster,
        pipelines: Callable[[], Awaitable[Sequence[PipelineSpec]]],
        replicas: Callable[[PipelineSpec], Awaitable[Sequence[ReplicaRecord]]],
    ) -> None:
        """`pipelines` returns those that are deployed, `replicas` those of one of them."""
        self._cluster, self._pipelines, self._replicas = cluster, pipelines, replicas
        self._known: dict[str, _Known] = {}
        self._looking = asyncio.Lock()
        self._latest: list[PipelineLook] = []
        self._looked_at = -EVERY
        self._closed = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closed.set()

    async def look(self) -> list[PipelineLook]:
        """Every pipeline now, by name; of those who ask within half a period, the later ones get what the first one saw.

        Raises BrokerError when nobody can say in time.
        """
        async with self._looking:
            if time.monotonic() - self._looked_at < EVERY / 2:
                return self._latest
            try:
                async with asyncio.timeout(LOOK_TIMEOUT):
                    specs = await self._pipelines()
                    looks = await asyncio.gather(*map(self._look_at, specs))
            except TimeoutError as error:
                raise BrokerUnavailable(f"the broker did not answer within {LOOK_TIMEOUT:g} s") from error
            self._latest, self._looked_at = [look for look in looks if look is not None], time.monotonic()
            self._known = {spec.name: self._known[spec.name] for spec in specs if spec.name in self._known}
            return self._latest

    async def follow(self) -> AsyncGenerator[list[PipelineLook] | BrokerError, None]:
        """A look, and the next one after each period, until the feed is closed; an error where nobody could say."""
        while not self._closed.is_set():
            try:
                yield await self.look()
            except BrokerError as error:
                yield error
            with suppress(TimeoutError):
                async with asyncio.timeout(EVERY):
                    await self._closed.wait()

    async def _look_at(self, spec: PipelineSpec) -> PipelineLook | None:
        """None of a pipeline that was deleted in the meantime."""
        connection, known = self._cluster.connection, self._known.setdefault(spec.name, _Known())
        try:
            status = await read_status(connection, spec, await self._replicas(spec), ages=True)
            if time.monotonic() - known.times_at >= _TIMES_EVERY:
                ended = await Ledger(connection, spec.name).latest(
                    SAMPLE, lambda record: record.state.terminal, most=SAMPLE
                )
                known.times, known.times_at = stage_times(ended), time.monotonic()
        except BrokerRefused:
            return None
        while known.history and known.history[0].now < status.now - _RATE_WINDOW:
            known.history.popleft()
        before = known.history[0] if known.history else None
        known.history.append(status)
        return PipelineLook(status, before, known.times)
