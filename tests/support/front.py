"""A front door on a real port over a real broker: orchestrator and replicas in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import httpx
from openai import AsyncOpenAI

from omnibus.broker.connection import Connection
from omnibus.broker.layout import ensure_layout, layout_of
from omnibus.client.cluster_view import ClusterView
from omnibus.client.producer import Producer
from omnibus.frontdoor.app import create_app
from omnibus.frontdoor.batching.batch_runner import BatchRunner
from omnibus.frontdoor.context import Options
from omnibus.frontdoor.http_connection import Limits
from omnibus.frontdoor.outbound.addresses import AddressRule
from omnibus.frontdoor.outbound.webhook_sender import WebhookSender
from omnibus.frontdoor.responses.response_runner import ResponseRunner
from omnibus.frontdoor.server import HttpServer
from omnibus.frontdoor.video_jobs.video_runner import VideoRunner
from omnibus.observability.tracing import Tracing
from omnibus.orchestrator.service import OrchestratorService
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.registry.presence.replica_record import ReplicaRecord
from omnibus.workers.replica import Replica, ReplicaOptions
from tests.support.waiting import eventually

STEPS = 4


def omni_sim(name: str, **writer_args: object) -> PipelineSpec:
    """A pipeline of `sim` stages: text, and from it an image and a sound."""
    return PipelineSpec(
        name=name,
        deadline=30.0,
        stages=(
            StageSpec(
                stage_id=0, name="writer", engine="sim", slots=8, final_output=True, final_output_type="text",
                engine_args={"outputs": {"text": "text"}, **writer_args},
            ),
            StageSpec(
                stage_id=1, name="painter", engine="sim", slots=8, input_sources=(0,), final_output=True,
                final_output_type="image", engine_args={"outputs": {"image": "image"}, "steps": STEPS, "latency": 0.02},
            ),
            StageSpec(
                stage_id=2, name="speaker", engine="sim", slots=8, input_sources=(0,), final_output=True,
                final_output_type="audio", engine_args={"outputs": {"audio": "audio"}, "size": 800},
            ),
        ),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Front:
    """A running front door and clients of it."""

    server: HttpServer
    spec: PipelineSpec
    producer: Producer
    openai: AsyncOpenAI
    http: httpx.AsyncClient


class FixedPipelines:
    """A view of pipelines that do not change."""

    def __init__(self, *specs: PipelineSpec) -> None:
        self._specs = {spec.name: spec for spec in specs}

    async def get(self, name: str) -> PipelineSpec | None:
        return self._specs.get(name)

    async def all(self) -> list[PipelineSpec]:
        return list(self._specs.values())


async def nobody(_spec: PipelineSpec) -> list[ReplicaRecord]:
    """A view of no replicas."""
    return []


@asynccontextmanager
async def front(
    connection: Connection,
    spec: PipelineSpec,
    options: Options | None = None,
    *,
    workers: bool = True,
    tracing: Tracing | None = None,
    idle: tuple[PipelineSpec, ...] = (),
    limits: Limits | None = None,
    batches: bool = False,
    videos: bool = False,
    webhooks: bool = False,
    responses: bool = False,
) -> AsyncIterator[Front]:
    """Everything for one pipeline; without `workers`, requests are accepted and stay open. `idle` ones are only deployed.

    `batches`: it runs batches, too; `videos`, `responses`: it sees to videos, and to responses in the background; `webhooks`: it
    sends them.
    """
    connection.tracing = tracing or connection.tracing
    for one in (spec, *idle):
        await ensure_layout(connection, layout_of(one))
    async with AsyncExitStack() as stack:
        if workers:
            await stack.enter_async_context(_running(connection, spec))
        producer = await stack.enter_async_context(Producer(connection))
        cluster = await stack.enter_async_context(ClusterView(connection))
        app = create_app(
            producer, FixedPipelines(spec, *idle), replicas=cluster.replicas, options=options,
            connected=lambda: connection.connected, metrics=connection.metrics, tracing=tracing,
        )  # fmt: skip
        if batches:
            await stack.enter_async_context(BatchRunner(app))
        if videos:
            await stack.enter_async_context(VideoRunner(app.state.context))
        if webhooks:
            rule = AddressRule.of(options.allowed_networks if options is not None else ())
            await stack.enter_async_context(WebhookSender(connection, rule))
        if responses:
            await stack.enter_async_context(ResponseRunner(app.state.context))
        server = await stack.enter_async_context(HttpServer(app, port=0, grace=1.0, limits=limits))
        await stack.enter_async_context(app.state.context.feed)
        key = options.api_keys[0].removeprefix("admin:") if options is not None and options.api_keys else "any"
        openai = await stack.enter_async_context(
            AsyncOpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=20.0)
        )
        http = await stack.enter_async_context(
            httpx.AsyncClient(base_url=server.url, headers={"Authorization": f"Bearer {key}"}, timeout=20.0)
        )
        yield Front(server, spec, producer, openai, http)


@asynccontextmanager
async def _running(connection: Connection, spec: PipelineSpec) -> AsyncIterator[None]:
    replicas = [Replica(connection, spec, stage, ReplicaOptions(grace=0.1)) for stage in spec.stages]
    orchestrator = asyncio.create_task(OrchestratorService(connection, spec).run(), name="orchestrator")
    running = [asyncio.create_task(replica.run(), name="replica") for replica in replicas]
    try:
        await eventually(lambda: all(replica.record.status == "up" for replica in replicas), what="replicas up")
        yield
    finally:
        for replica in replicas:
            replica.drain()
        await asyncio.wait(running, timeout=5.0)
        for task in (*running, orchestrator):
            task.cancel()
        await asyncio.gather(*running, orchestrator, return_exceptions=True)
