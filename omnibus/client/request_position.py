"""Where an open request is: the stages that run it, and those that it waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from omnibus.broker.connection import Connection, ReceivedMessage
from omnibus.ledger.work_queue import WorkQueue
from omnibus.wire import codec, subjects
from omnibus.wire.control import Announcement, AskClaims, Claim
from omnibus.wire.envelope import Event, StageResult, StageTiming, Task

_CLAIMS_DEADLINE = 0.5
"""Seconds that replicas have to say what they have in hand; what none of them claims by then waits."""


@dataclass(frozen=True, slots=True)
class StagePosition:
    """A stage that a request is at."""

    stage_id: int
    queued: float
    """When its task was published, seconds since the epoch by the server's clock."""
    replica: str | None
    """The one that runs it; None while the task waits."""


@dataclass(frozen=True, slots=True)
class RequestPosition:
    """A request on its way."""

    stages: tuple[StagePosition, ...]
    """Those that it is at; none for a moment while it passes from one to the next."""
    timings: tuple[StageTiming, ...]
    """Times of the stages behind it, as far as the queued messages carry them."""


async def find_position(connection: Connection, pipeline: str, rid: str) -> RequestPosition:
    """The position of a request according to the queue and the replicas; empty for one that has ended.

    Raises BrokerUnavailable.
    """
    queued = await WorkQueue(connection, pipeline).queued(rid)
    tasks = [one for one in queued if isinstance(one, Task)]
    claimed = await _claimants(connection, pipeline, rid, len(tasks)) if tasks else {}
    stages = [StagePosition(task.stage_id, task.published, claimed.get(task.stage_id)) for task in tasks]
    return RequestPosition(tuple(sorted(stages, key=lambda stage: stage.stage_id)), _behind(queued))


async def timings_behind(connection: Connection, pipeline: str, rid: str) -> tuple[StageTiming, ...]:
    """Times of the stages that an open request has behind it, as far as its queued messages carry them; asks no replica.

    Raises BrokerUnavailable.
    """
    return _behind(await WorkQueue(connection, pipeline).queued(rid))


def _behind(queued: Iterable[Task | Event]) -> tuple[StageTiming, ...]:
    timings = {
        timing.stage_id: timing for one in queued if isinstance(one, Task | StageResult) for timing in one.timings
    }
    return tuple(sorted(timings.values(), key=lambda timing: timing.finished))


async def _claimants(connection: Connection, pipeline: str, rid: str, wanted: int) -> dict[int, str]:
    """Find the replicas that have claimed a request, by stage, as soon as `wanted` of them have announced it."""
    found: dict[int, str] = {}
    complete = asyncio.Event()

    async def note(message: ReceivedMessage) -> None:
        claim: Announcement = codec.decode(message.data, Announcement)
        if isinstance(claim, Claim) and any(held == rid for held, _ in claim.held):
            found[claim.stage_id] = claim.replica
        if len(found) >= wanted:
            complete.set()

    subscription = await connection.subscribe(subjects.claims(pipeline), note)
    try:
        await connection.publish(subjects.ask_all(pipeline), codec.encode(AskClaims()))
        async with asyncio.timeout(_CLAIMS_DEADLINE):
            await complete.wait()
    except TimeoutError:
        pass
    finally:
        await subscription.unsubscribe()
    return found
