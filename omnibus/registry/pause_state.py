"""Pause states of whole stages, set by operators: paused, or asleep. They are kept in the broker until they are undone.

So a replica that joins later, or starts again, does as the others do; a restart of everything changes nothing of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from enum import StrEnum
from typing import Self

import msgspec

from omnibus.broker.bucket import Bucket
from omnibus.broker.connection import Connection
from omnibus.broker.watch import Watch
from omnibus.errors import InvalidRequest
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.wire import codec, stores

log = get_logger(__name__)


class PauseMode(StrEnum):
    """The fate of the running tasks when a replica is paused. Neither mode loses any."""

    WAIT = "wait"
    """They are finished first."""
    ABORT = "abort"
    """They are stopped and go back to the queue, for another replica or for this one later."""


class PauseState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Replicas of a stage take no tasks."""

    v: int = 1
    asleep: bool = False
    """And their engines have given the device memory back."""
    mode: str = "abort"
    """The mode of the pause."""

    @property
    def word(self) -> str:
        """For people."""
        return "asleep" if self.asleep else "paused"


class PauseStates:
    """The pause states of one pipeline. Every method raises BrokerUnavailable after about ten seconds of retries."""

    def __init__(self, conn: Connection, pipeline: str) -> None:
        self._bucket, self._pipeline = Bucket(conn, stores.PIPELINES_BUCKET), pipeline

    async def place(self, stage_ids: Iterable[int], pause_state: PauseState) -> None:
        """Set a pause state for these stages, in place of another."""
        for stage_id in stage_ids:
            await self._bucket.put(stores.pause_key(self._pipeline, stage_id), codec.encode(pause_state))

    async def lift(self, stage_ids: Iterable[int]) -> None:
        """Have none stand any more; idempotent."""
        for stage_id in await self.of(stage_ids):
            await self._bucket.delete(stores.pause_key(self._pipeline, stage_id))

    async def of(self, stage_ids: Iterable[int]) -> dict[int, PauseState]:
        """The pause states that are set, by stage."""
        ids = tuple(stage_ids)
        entries = await asyncio.gather(*(self._bucket.get(stores.pause_key(self._pipeline, one)) for one in ids))
        pause_states = (
            (one, _decoded(entry.value if entry else None)) for one, entry in zip(ids, entries, strict=True)
        )
        return {stage_id: pause_state for stage_id, pause_state in pause_states if pause_state is not None}


def pause_mode(name: str) -> PauseMode:
    """The mode of this name; raises InvalidRequest."""
    try:
        return PauseMode(name)
    except ValueError as error:
        known = " or ".join(PauseMode)
        raise InvalidRequest(f"mode is {known}, not {name!r}: nothing here keeps tasks frozen", param="mode") from error


class PauseWatch:
    """The pause state of one stage as it is now, in an `async with`; known from the start."""

    def __init__(self, conn: Connection, pipeline: str, stage_id: int) -> None:
        self.pause_state: PauseState | None = None
        self._changed = asyncio.Event()
        key = stores.pause_key(pipeline, stage_id)
        self._watch = Watch(conn, stores.PIPELINES_BUCKET, self._on_message, keys=key)

    async def __aenter__(self) -> Self:
        """Raises BrokerUnavailable."""
        await self._watch.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._watch.__aexit__()

    async def other_than(self, known: PauseState | None) -> PauseState | None:
        """The pause state, as soon as it is not this one; what comes and goes meanwhile may be missed."""
        while self.pause_state == known:
            self._changed.clear()
            await self._changed.wait()
        return self.pause_state

    def _on_message(self, _key: str, value: bytes | None, _revision: int) -> None:
        self.pause_state = _decoded(value)
        self._changed.set()


def _decoded(value: bytes | None) -> PauseState | None:
    if value is None:
        return None
    try:
        return codec.decode(value, PauseState)
    except InvalidRequest as error:  # of a newer version: that a pause is set is what matters
        log.warning(LogEvent.BROKER_ERROR, error=error.message)
        return PauseState()
