"""One execution of a stage: from a task to its result. Publishes deltas, but neither the result nor acks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any, cast

from omnibus.broker.connection import Connection
from omnibus.errors import EngineError
from omnibus.observability.tracing import NoTracing, Tracing
from omnibus.pipeline.spec import StageSpec
from omnibus.wire import subjects
from omnibus.wire.envelope import StageResult, StageTiming, Task
from omnibus.wire.out import Fence
from omnibus.wire.payload import Payloads
from omnibus.workers.deltas import Deltas
from omnibus.workers.engines.protocol import Engine, Finished, Job, Progress
from omnibus.workers.inputs import JobBuilder
from omnibus.workers.outputs import OutputWriter


class Execution:
    """Runs tasks of one stage on one engine; as many at the same time as the engine has slots."""

    def __init__(
        self, conn: Connection, stage: StageSpec, engine: Engine, builder: JobBuilder, writer: OutputWriter,
        *, tracing: Tracing | None = None,
    ) -> None:  # fmt: skip
        self._conn, self._stage, self._engine = conn, stage, engine
        self._builder, self._writer, self._tracing = builder, writer, tracing or NoTracing()

    async def run(self, task: Task, *, task_seq: int, delivered: int, replica: str) -> StageResult:
        """Raises a RequestError, PayloadLost, EngineError, or whatever the engine's own code raised.

        Cancelling it closes the engine's generator, which frees what the job holds. One span, under the request's.
        """
        ticket = task.ticket
        about = {"pipeline": ticket.pipeline, "stage": self._stage.name, "rid": ticket.rid, "replica": replica}
        with self._tracing.span("stage", ticket.trace, about) as trace:
            return await self._run(task, trace, task_seq, delivered, replica)

    async def _run(
        self, task: Task, trace: Mapping[str, str], task_seq: int, delivered: int, replica: str
    ) -> StageResult:
        started = self._conn.clock.now()
        job = dataclasses.replace(await self._builder.build(task, delivered), trace=trace)
        deltas = self._deltas(task, job, Fence(task.ticket.run, task_seq, delivered))
        finished = await self._generate(job, deltas, is_final=task.ticket.route[task.stage_id].final is not None)
        outputs = await self._writer.forwarded(task, finished)
        final = await self._writer.final(task, finished)
        sizes = (
            _nbytes(*task.inputs.values()),
            _nbytes(outputs) + sum(item.nbytes for item in (final.items if final else ())),
            sum(payload.location is not None for payload in outputs.values()),
        )
        timing = StageTiming(task.stage_id, task.published, started, self._conn.clock.now(), *sizes)
        return StageResult(
            ticket=task.ticket, stage_id=task.stage_id, replica=replica,
            outputs=outputs, final=final, timings=(*task.timings, timing),
        )  # fmt: skip

    async def _generate(self, job: Job, deltas: Deltas | None, *, is_final: bool) -> Finished:
        try:
            # Engines write generate as an async generator, which the protocol's iterator does not promise.
            async with aclosing(cast("Any", self._engine.generate(job))) as items:
                async for item in items:
                    if isinstance(item, Finished):
                        await _closed(deltas)
                        return item
                    if deltas is not None and (is_final or isinstance(item, Progress)):
                        deltas.add(item)
        finally:
            if deltas is not None:
                deltas.drop()
        raise EngineError(f"stage {self._stage.name!r}: the engine ended without a result")

    def _deltas(self, task: Task, job: Job, fence: Fence) -> Deltas | None:
        front = task.ticket.front
        if front is None or not job.stage_input.request.stream:
            return None
        subject = subjects.out(task.ticket.pipeline, front, task.ticket.rid)
        return Deltas(self._conn, subject, rid=task.ticket.rid, stage_id=task.stage_id, fence=fence)


async def _closed(deltas: Deltas | None) -> None:
    if deltas is not None:
        await deltas.close()


def _nbytes(*payloads: Payloads) -> int:
    return sum(payload.nbytes for given in payloads for payload in given.values())
