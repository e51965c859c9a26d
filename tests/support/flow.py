"""A whole pipeline in this process: orchestrators and replicas on a real broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from omnibus.broker.connection import Connection
from omnibus.broker.layout import ensure_layout, layout_of
from omnibus.client.producer import Producer
from omnibus.orchestrator.service import OrchestratorService
from omnibus.payloads.transports import Transports
from omnibus.pipeline.route import Forwarding
from omnibus.pipeline.spec import EdgeSpec, PipelineSpec, StageSpec
from omnibus.workers.replica import Replica, ReplicaOptions
from tests.support.waiting import eventually

_BROKER_ONLY = Transports()


def sim(
    stage_id: int, *sources: int, outputs: dict[str, str] | None = None, final: str | None = None, **args: Any
) -> StageSpec:
    """A `sim` stage `s<id>` with eight slots."""
    return StageSpec(
        stage_id=stage_id,
        name=f"s{stage_id}",
        engine="sim",
        slots=8,
        input_sources=sources,
        final_output=final is not None,
        final_output_type=final,
        engine_args={"outputs": outputs or {"text": "text"}, **args},
    )


def line(name: str, forwarding: Forwarding = Forwarding.ORCHESTRATOR, **fields: Any) -> PipelineSpec:
    """Two stages, one after the other; the second delivers text."""
    return PipelineSpec(
        name=name,
        stages=(sim(0), sim(1, 0, final="text")),
        edges=(EdgeSpec(source=0, target=1, forwarding=forwarding),),
        **{"deadline": 20.0, "heartbeat_timeout": 1.0, **fields},
    )


@asynccontextmanager
async def serving(
    connection: Connection,
    spec: PipelineSpec,
    *,
    orchestrators: int = 1,
    replicas: int = 1,
    copies: int = 1,
    ready: float = 5.0,
    transports: Transports = _BROKER_ONLY,
) -> AsyncIterator[Producer]:
    """A producer of a pipeline that is served, every replica up within `ready` seconds. Its workers have `transports`."""
    await ensure_layout(connection, layout_of(spec, replicas=copies))
    options = ReplicaOptions(grace=0.1, transports=transports)
    made = [Replica(connection, spec, stage, options) for stage in spec.stages for _ in range(replicas)]
    running = [asyncio.create_task(replica.run(), name="replica") for replica in made]
    services = [
        asyncio.create_task(OrchestratorService(connection, spec).run(), name="orchestrator")
        for _ in range(orchestrators)
    ]
    try:
        async with Producer(connection) as producer:
            await eventually(lambda: all(replica.record.status == "up" for replica in made), ready, what="replicas up")
            yield producer
    finally:
        for replica in made:
            replica.drain()
        if running:
            await asyncio.wait(running, timeout=5.0)
        for task in (*running, *services):
            task.cancel()
        await asyncio.gather(*running, *services, return_exceptions=True)
