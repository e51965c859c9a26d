"""One execution of a stage: from a task to its result. Publishes deltas, but neither the result nor acks.

What leaves a stage's own code stops here, whatever it is.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Hashable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any, cast

from omnibus.broker.connection import Connection
from omnibus.errors import EngineError, OmnibusError
from omnibus.observability.tracing import Tracing
from omnibus.pipeline.spec import StageSpec
from omnibus.wire import subjects
from omnibus.wire.envelope import StageResult, StageTiming, Task
from omnibus.wire.out import Fence
from omnibus.wire.payload import Payloads
from omnibus.workers.bundle import items_of
from omnibus.workers.containment import contained
from omnibus.workers.engines.protocol import Chunk, Engine, Finished, Job, Progress, StageInput
from omnibus.workers.item_checks import check_item
from omnibus.workers.job_builder import JobBuilder
from omnibus.workers.output_writer import OutputWriter
from omnibus.workers.text_stream import DeltaStream, DeltaStreams, received

PROCESSING = -1
"""Stands for the items of an execution whose input processor runs."""


class Execution:
    """Runs tasks of one stage on one engine; as many at the same time as the engine has slots."""

    def __init__(
        self, conn: Connection, stage: StageSpec, engine: Engine, builder: JobBuilder, writer: OutputWriter,
        *, tracing: Tracing, streams: DeltaStreams,
    ) -> None:  # fmt: skip
        """`streams` has each text while it is made."""
        self._conn, self._stage, self.engine = conn, stage, engine
        self._builder, self._writer, self._tracing = builder, writer, tracing
        self._streams = streams
        self._items: dict[int, int] = {}
        self._numbers = itertools.count()

    def progress(self) -> dict[Hashable, int]:
        """How far each execution has come that the engine works on, in items and in the engine's own signs of life.

        Plain input processors run one after the other: all that wait come further when one returns. An async one shows
        no progress before it returns.
        """
        whole, processed = self.engine.progress(), self._builder.processed
        return {number: processed if items == PROCESSING else items + whole for number, items in self._items.items()}

    async def run(
        self, task: Task, *, task_seq: int, delivered: int, again: bool, replica: str
    ) -> StageResult | OmnibusError:
        """The result, or why there is none: a RequestError, PayloadLost, EngineError; what others raise is an EngineError.

        `again`: somebody had the task before, and the client may have a part of its text; the engine is asked to go on
        after that. Cancelling it closes the engine's generator, which frees what the job holds. One span, under the
        request's.
        """
        ticket = task.ticket
        about = {"pipeline": ticket.pipeline, "stage": self._stage.name, "rid": ticket.rid, "replica": replica}
        with self._tracing.span("stage", ticket.trace, about) as trace:
            return await contained(self._run(task, trace, Fence(ticket.run, task_seq, delivered), again, replica))

    async def close(self) -> None:
        """Free what the engine and the input processor hold."""
        self._builder.close()
        await self.engine.close()

    async def probe(self) -> Finished | OmnibusError:
        """Run the stage's canary; the error is returned, not raised."""

        async def run() -> Finished:
            return await self._generate(await self._built(self._builder.canary()))

        return await contained(run())

    async def _run(self, task: Task, trace: Mapping[str, str], fence: Fence, again: bool, replica: str) -> StageResult:
        started = self._conn.clock.now()
        job = await self._job(task, trace, fence, again)
        with self._streams.running(task.ticket.rid, task.stage_id, fence, _subject(task, job)) as stream:
            finished = await self._generate(job, stream, has_text=task.ticket.route[task.stage_id].final is not None)
            # No progress is expected meanwhile: this waits for the broker, not for the engine.
            await self._streams.flush(stream)
        outputs = await self._writer.forwarded(task, finished)
        final = await self._writer.final(task, finished)
        sizes = (
            _nbytes(*task.inputs.values()),
            _nbytes(outputs) + sum(item.nbytes for item in (final.items if final else ())),
            sum(payload.object_key is not None for payload in outputs.values()),
            sum(payload.in_memory for payload in outputs.values()),
        )
        timing = StageTiming(task.stage_id, task.published, started, self._conn.clock.now(), *sizes)
        return StageResult(
            ticket=task.ticket, stage_id=task.stage_id, replica=replica,
            outputs=outputs, final=final, timings=(*task.timings, timing),
        )  # fmt: skip

    async def _job(self, task: Task, trace: Mapping[str, str], fence: Fence, again: bool) -> Job:
        given = await self._builder.given(task)
        job = await self._built(given, attempt=fence.delivery, priority=task.ticket.priority, trace=trace)
        streams = job.stage_input.request.stream and task.ticket.route[task.stage_id].final == "text"
        if streams and (again or fence.run > 1):
            job = dataclasses.replace(job, received=await received(self._conn, task, fence))
        return job

    async def _built(self, given: StageInput, **more: Any) -> Job:
        with self._counted(PROCESSING):
            return await self._builder.build(given, **more)

    async def _generate(self, job: Job, stream: DeltaStream | None = None, *, has_text: bool = False) -> Finished:
        """The last item of a job, counted until nothing works on the job any more; the others go to `stream`.

        Without `has_text` no caller is sent the stage's text.
        """
        # Engines write generate as an async generator, which the protocol's iterator does not promise.
        with self._counted(0) as number:
            async with aclosing(cast("Any", items_of(self.engine, job))) as items:
                async for item in items:
                    self._items[number] += 1
                    check_item(self._stage.name, self.engine.outputs, item)
                    if isinstance(item, Finished):
                        return item
                    if isinstance(item, Chunk):
                        continue
                    if stream is not None and (has_text or isinstance(item, Progress)):
                        self._streams.add(stream, item)
        raise EngineError(f"stage {self._stage.name!r}: the engine ended without a result")

    @contextmanager
    def _counted(self, items: int) -> Iterator[int]:
        number = next(self._numbers)
        self._items[number] = items
        try:
            yield number
        finally:
            del self._items[number]


def _subject(task: Task, job: Job) -> str | None:
    """The subject on which a follower of the request listens; None where it wants no stream."""
    front = task.ticket.front
    if front is None or not job.stage_input.request.stream:
        return None
    return subjects.out(task.ticket.pipeline, front, task.ticket.rid)


def _nbytes(*payloads: Payloads) -> int:
    return sum(payload.nbytes for given in payloads for payload in given.values())
