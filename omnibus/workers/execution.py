"""One execution of a stage: from a task to its result. Publishes deltas and flows, but neither the result nor acks.

What leaves a stage's own code stops here, whatever it is.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, cast

from omnibus.broker.connection import Connection
from omnibus.broker.delivery import Delivery
from omnibus.errors import EngineError, OmnibusError
from omnibus.pipeline.route import RouteStage
from omnibus.pipeline.spec import StageSpec
from omnibus.wire import subjects
from omnibus.wire.envelope import FinalOutput, StageResult, StageTiming, Task, TokenUsage
from omnibus.wire.out import Fence
from omnibus.wire.payload import Payloads
from omnibus.workers.bundle import items_of
from omnibus.workers.containment import contained
from omnibus.workers.engines.protocol import Engine, Finished, Flows, Job, Progress, SegmentEnd, StageInput, TextDelta
from omnibus.workers.flow_input import FlowInput
from omnibus.workers.flow_output import FlowOutput
from omnibus.workers.item_checks import check_item
from omnibus.workers.job_builder import JobBuilder
from omnibus.workers.output_writer import OutputWriter
from omnibus.workers.stage_flows import StageFlows
from omnibus.workers.task_spans import TaskSpans
from omnibus.workers.text_stream import DeltaStream, DeltaStreams, received

PROCESSING = -1
"""Stands for the items of an execution whose input processor runs."""


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One delivery of a task, as its execution knows it."""

    task: Task
    fence: Fence
    again: bool
    """Somebody had the task before."""
    trace: Mapping[str, str]
    started: float

    @property
    def stage(self) -> RouteStage:
        return self.task.ticket.route[self.task.stage_id]


class Execution:
    """Runs tasks of one stage on one engine; as many at the same time as the engine has slots."""

    def __init__(
        self, conn: Connection, stage: StageSpec, engine: Engine, builder: JobBuilder, writer: OutputWriter,
        *, streams: DeltaStreams, flows: StageFlows,
    ) -> None:  # fmt: skip
        """`streams` has each text while it is made."""
        self._conn, self._stage, self.engine = conn, stage, engine
        self._builder, self._writer, self._spans = builder, writer, TaskSpans(conn, stage)
        self._streams, self._flows = streams, flows
        self._items: dict[int, int] = {}
        self._waiting: dict[int, Callable[[], bool]] = {}
        """Executions with flows, and whether each waits for a chunk, or for the readers of its own."""
        self._numbers = itertools.count()

    def progress(self) -> dict[Hashable, int]:
        """How far each execution has come that the engine works on, in items and in the engine's own signs of life.

        Plain input processors run one after the other: all that wait come further when one returns. An async one shows
        no progress before it returns. One that waits for another stage is not expected to make progress.
        """
        whole, processed = self.engine.progress(), self._builder.processed
        waiting = {number for number, is_waiting in self._waiting.items() if is_waiting()}
        return {
            number: processed if items == PROCESSING else items + whole
            for number, items in self._items.items()
            if number not in waiting
        }

    async def run(self, task: Task, delivery: Delivery, *, replica: str) -> StageResult | OmnibusError:
        """The result, or why there is none: a RequestError, PayloadLost, EngineError; what others raise is an EngineError.

        Where somebody had the task before, the client, or a flow, may have a part of what it makes; the engine is asked to go
        on after that. Cancelling it closes the engine's generator, which frees what the job holds. One span,
        under the request's.
        """
        fence, now = Fence(task.ticket.run, delivery.stream_seq, delivery.attempts), self._conn.clock.now()
        if self._conn.tracing.provider is None:
            attempt = _Attempt(task, fence, delivery.again, task.ticket.trace, now)
            return await contained(self._run(attempt, replica))
        with self._spans.attempt(task, delivery, replica=replica, now=now) as span:
            attempt = _Attempt(task, fence, delivery.again, span.headers, now)
            outcome = await contained(self._run(attempt, replica))
            self._spans.conclude(span, outcome)
            return outcome

    async def close(self) -> None:
        """Free what the engine and the input processor hold."""
        self._builder.close()
        await self.engine.close()

    async def probe(self) -> Finished | OmnibusError:
        """Run the stage's canary; the error is returned, not raised."""

        async def run() -> Finished:
            return await self._generate(await self._built(self._builder.canary()))

        return await contained(run())

    async def _run(self, attempt: _Attempt, replica: str) -> StageResult:
        task = attempt.task
        given = await self._builder.given(task)
        source, flow = self._flows.input(task, given.request), self._flows.output(task, attempt.fence, given.request)
        if source is None and flow is None:
            return await self._result(attempt, replica, await self._made(attempt, given), task.timings)
        return await self._flowing(attempt, replica, given, source, flow)

    async def _flowing(
        self, attempt: _Attempt, replica: str, given: StageInput, source: FlowInput | None, flow: FlowOutput | None
    ) -> StageResult:
        """The result of a job that reads a flow, writes one, or both; the end of the one that it writes is stored by then."""
        async with AsyncExitStack() as stack:
            for one in (source, flow):
                if one is not None:
                    await stack.enter_async_context(one)
            if flow is not None and attempt.again:
                await flow.open()
                if flow.end is not None and not _owes_more(attempt.stage):
                    nothing = Finished(outputs={}, usage=flow.end.usage)
                    return await self._result(attempt, replica, nothing, flow.end.timings[:-1], flow)
            finished = await self._until_whole(attempt, given, source, flow)
            timings = attempt.task.timings if source is None or source.end is None else source.end.timings
            result = await self._result(attempt, replica, finished, timings, flow)
            if flow is not None:
                await flow.finish(finished, result.timings)
            return result

    async def _result(
        self, attempt: _Attempt, replica: str, finished: Finished, timings: tuple[StageTiming, ...],
        flow: FlowOutput | None = None,
    ) -> StageResult:  # fmt: skip
        """Store what the last item has for others; `timings` are those of the stages before."""
        task = attempt.task
        outputs = await self._writer.forwarded(task, finished)
        final = await self._writer.final(task, finished)
        timing = self._timing(attempt, outputs, final, flow, finished.usage)
        return StageResult(
            ticket=task.ticket, stage_id=task.stage_id, replica=replica,
            outputs=outputs, final=final, timings=(*timings, timing),
        )  # fmt: skip

    async def _until_whole(
        self, attempt: _Attempt, given: StageInput, source: FlowInput | None, flow: FlowOutput | None
    ) -> Finished:
        """The last item of a job, run again from its first chunk whenever the flow that it reads has begun again."""
        while source is not None:
            reading = replace(given, flows=Flows({source.name: source.flow()}))
            finished = await source.run(self._made(attempt, reading, source, flow))
            if finished is not None:
                return finished
            if flow is not None:
                flow.restart()
        return await self._made(attempt, given, None, flow)

    async def _made(
        self, attempt: _Attempt, given: StageInput, source: FlowInput | None = None, flow: FlowOutput | None = None
    ) -> Finished:
        """The last item of one run of the engine; what it yields before is on its way to the caller, and in its flow."""
        job = await self._job(attempt, given, flow)
        with self._streams.running(given.rid, attempt.task.stage_id, attempt.fence, _subject(attempt, job)) as stream:
            finished = await self._generate(job, stream, flow, source, has_text=attempt.stage.final is not None)
            # No progress is expected meanwhile: this waits for the broker, not for the engine.
            await self._streams.flush(stream)
        return finished

    async def _job(self, attempt: _Attempt, given: StageInput, flow: FlowOutput | None) -> Job:
        task, fence = attempt.task, attempt.fence
        job = await self._built(given, attempt=fence.delivery, priority=task.ticket.priority, trace=attempt.trace)
        known = flow.received if flow is not None else ()
        streams = given.request.stream and attempt.stage.final == "text"
        if streams and (attempt.again or fence.run > 1):
            sent = await received(self._conn, task, fence)
            # What both have must be the same: the flow cannot be taken back, and the caller may be ahead of it.
            known = sent if sent[: len(known)] == known else known
        return replace(job, received=known) if known else job

    async def _built(self, given: StageInput, **more: Any) -> Job:
        with self._counted(PROCESSING):
            return await self._builder.build(given, **more)

    async def _generate(
        self, job: Job, stream: DeltaStream | None = None, flow: FlowOutput | None = None,
        source: FlowInput | None = None, *, has_text: bool = False,
    ) -> Finished:  # fmt: skip
        """The last item of a job, counted until nothing works on the job any more; the others go to `stream` and `flow`.

        Without `has_text` no caller is sent the stage's text.
        """
        # Engines write generate as an async generator, which the protocol's iterator does not promise.
        with self._counted(0, source, flow) as number:
            async with aclosing(cast("Any", items_of(self.engine, job))) as items, _closing(job.parts):
                async for item in items:
                    self._items[number] += 1
                    check_item(self._stage.name, self.engine.outputs, item)
                    if isinstance(item, Finished):
                        return self._whole(item)
                    is_sent = isinstance(item, Progress) or (has_text and isinstance(item, TextDelta | SegmentEnd))
                    if stream is not None and is_sent:
                        self._streams.add(stream, item)
                    if flow is not None and not isinstance(item, Progress):
                        await flow.add(item)
        raise EngineError(f"stage {self._stage.name!r}: the engine ended without a result")

    def _whole(self, finished: Finished) -> Finished:
        """The last item; raises EngineError for that of an aborted job, which is no result."""
        if finished.finish_reason == "abort":
            raise EngineError(f"stage {self._stage.name!r}: the engine aborted the job")
        return finished

    @contextmanager
    def _counted(self, items: int, source: FlowInput | None = None, flow: FlowOutput | None = None) -> Iterator[int]:
        number = next(self._numbers)
        self._items[number] = items
        if source is not None or flow is not None:
            self._waiting[number] = lambda: any(one is not None and one.is_waiting for one in (source, flow))
        try:
            yield number
        finally:
            del self._items[number]
            self._waiting.pop(number, None)

    def _timing(
        self, attempt: _Attempt, outputs: Payloads, final: FinalOutput | None, flow: FlowOutput | None,
        usage: TokenUsage,
    ) -> StageTiming:  # fmt: skip
        """The timing of the stage so far, with what it has made."""
        task = attempt.task
        finals = (final, *final.also) if final is not None else ()
        made, flowed = _nbytes(outputs) + sum(item.nbytes for one in finals for item in one.items), 0
        stored = sum(payload.object_key is not None for payload in outputs.values())
        hosted = sum(payload.in_memory for payload in outputs.values())
        if flow is not None:
            made, flowed = made + flow.nbytes, flow.length
            stored, hosted = stored + flow.stored, hosted + flow.hosted
        return StageTiming(
            task.stage_id, task.published, attempt.started, self._conn.clock.now(),
            _nbytes(*task.inputs.values()), made, stored, hosted, flowed, usage,
        )  # fmt: skip


def _closing(parts: object) -> AbstractAsyncContextManager[object]:
    """Close a processor that makes its parts one by one, when its engine is done with them."""
    return nullcontext() if parts is None else aclosing(cast("Any", parts))


def _owes_more(stage: RouteStage) -> bool:
    """Whether a stage with a complete flow has something else to deliver."""
    return stage.final is not None or bool(stage.whole_targets)


def _subject(attempt: _Attempt, job: Job) -> str | None:
    """The subject on which a follower of the request listens; None where it wants no stream."""
    ticket = attempt.task.ticket
    if ticket.front is None or not job.stage_input.request.stream:
        return None
    return subjects.out(ticket.pipeline, ticket.front, ticket.rid)


def _nbytes(*payloads: Payloads) -> int:
    return sum(payload.nbytes for given in payloads for payload in given.values())
