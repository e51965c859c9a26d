"""Directed stages: who a task was published to, and replicas that come and go one at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from msgspec.structs import replace

from omnibus.broker.connection import Connection, ReceivedMessage
from omnibus.orchestrator.disconnects import SystemAccount
from omnibus.orchestrator.service import OrchestratorService
from omnibus.pipeline.policies import LoadBalancingPolicy
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.wire import subjects
from omnibus.workers.replica import Replica, ReplicaOptions
from tests.support.flow import sim
from tests.support.waiting import eventually


def one_stage(name: str, policy: LoadBalancingPolicy = "round-robin", **fields: Any) -> PipelineSpec:
    """A pipeline of one stage with that policy, one slot a replica; `fields` are of the pipeline, or `engine_args`."""
    args = fields.pop("engine_args", {})
    stage = replace(sim(0, final="text", **args), slots=1, lb_policy=policy)
    return PipelineSpec(name=name, stages=(stage,), **{"deadline": 30.0, "heartbeat_timeout": 1.0, **fields})


class LaneLog:
    """Every task as it is published: `(stage, lane, request)`, copies that dedupe drops among them."""

    def __init__(self) -> None:
        self.tasks: list[tuple[int, str, str]] = []

    def lanes(self, stage_id: int) -> list[str]:
        return [lane for stage, lane, _ in self.tasks if stage == stage_id]

    def lanes_of(self, rid: str) -> list[str]:
        return [lane for _, lane, of in self.tasks if of == rid]

    async def on_message(self, message: ReceivedMessage) -> None:
        parsed = subjects.parse_task(message.subject)
        self.tasks.append((parsed.stage_id, parsed.lane, parsed.rid))


@asynccontextmanager
async def lane_log(connection: Connection, pipeline: str) -> AsyncIterator[LaneLog]:
    log = LaneLog()
    subscription = await connection.subscribe(subjects.all_tasks_filter(pipeline), log.on_message)
    yield log
    await subscription.unsubscribe()


@asynccontextmanager
async def replica(
    connection: Connection, spec: PipelineSpec, stage: StageSpec | None = None, *, dies: bool = False, **options: Any
) -> AsyncIterator[Replica]:
    """One replica, up; at the end it leaves in order, or, when it `dies`, without a word."""
    made = Replica(connection, spec, stage or spec.stages[0], ReplicaOptions(**{"grace": 0.1, **options}))
    running = asyncio.create_task(made.run(), name="replica")
    try:
        await eventually(lambda: running.done() or made.record.status == "up", what="the replica is up")
        yield made
    finally:
        if dies:
            await die(made, running)
        made.drain()
        async with asyncio.timeout(15):
            await asyncio.gather(running, return_exceptions=True)


async def die(made: Replica, running: asyncio.Task[None]) -> None:
    """Fall silent as a process does that is killed: no last heartbeat, nothing requeued, no claim withdrawn."""
    made._registration.set_status = silence  # type: ignore[method-assign]
    made._claims.silence()
    running.cancel()
    await asyncio.wait({running})


async def silence(*_words: object) -> None:
    """A dead process writes nothing."""


@asynccontextmanager
async def orchestrator(
    connection: Connection, spec: PipelineSpec, *, system: SystemAccount | None = None
) -> AsyncIterator[None]:
    running = asyncio.create_task(OrchestratorService(connection, spec, system=system).run(), name="orchestrator")
    try:
        yield
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
