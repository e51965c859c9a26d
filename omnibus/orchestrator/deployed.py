"""The orchestrator of a pipeline as it is deployed now: a new deployment needs no restart of it.

Requests on their way keep the route that they were admitted with; it is in every message of theirs.
"""

from __future__ import annotations

import asyncio

from omnibus.broker.connection import Connection
from omnibus.broker.watch import Watch
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.orchestrator.disconnects import SystemAccount
from omnibus.orchestrator.service import OrchestratorService
from omnibus.pipeline.spec import PipelineSpec
from omnibus.registry.deployed_pipelines import read_pipeline
from omnibus.wire import stores

log = get_logger(__name__)


class DeployedOrchestrator:
    """Serves a deployed pipeline until `run` is cancelled, each of its revisions from the moment on that it is there."""

    def __init__(self, connection: Connection, spec: PipelineSpec, *, system: SystemAccount | None = None) -> None:
        """`spec` is served until another revision is found; `system` as for OrchestratorService."""
        self._connection, self._spec, self._system = connection, spec, system
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Serve; returns only by cancellation. Raises as OrchestratorService does."""
        bucket, keys = stores.PIPELINES_BUCKET, self._spec.name
        async with Watch(self._connection, bucket, self._on_message, keys=keys):
            while True:
                self._changed.clear()
                await self._serve(OrchestratorService(self._connection, self._spec, system=self._system))

    async def _serve(self, service: OrchestratorService) -> None:
        """Until there is another revision. What is in hand then is finished, and what waits is delivered again."""
        serving = asyncio.create_task(service.run(), name="orchestrator")
        changing = asyncio.create_task(self._changed.wait(), name="orchestrator-revision")
        try:
            await asyncio.wait({serving, changing}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                serving.result()
        finally:
            for task in (serving, changing):
                task.cancel()
            await asyncio.wait({serving, changing})

    def _on_message(self, _key: str, value: bytes | None, revision: int) -> None:
        """One that was deleted is served on: requests of it may still be open."""
        if value is None:
            return
        found = read_pipeline(self._spec.name, value)
        if found is not None and found != self._spec:
            log.info(LogEvent.PIPELINE_DEPLOYED, pipeline=found.name, revision=revision)
            self._spec = found
            self._changed.set()
