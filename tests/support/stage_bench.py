"""One stage of a pipeline with its queues, and a test in the place of everybody else: it submits tasks and takes events."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from omnibus.broker.connection import Connection, ReceivedMessage
from omnibus.broker.layout import ensure_layout, layout_of
from omnibus.broker.puller import Puller
from omnibus.child_process import ChildProcess, start_child
from omnibus.pipeline.route import Forwarding, Route, RouteStage, Target
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.wire import codec, stores, subjects
from omnibus.wire.envelope import AttemptFailed, Event, StageFailed, StageResult, Task, Ticket
from omnibus.wire.payload import MSGPACK, Payload
from omnibus.wire.request import Request
from omnibus.workers.replica import Replica, ReplicaOptions
from tests.support.waiting import eventually

HEARTBEAT_TIMEOUT = 1.0
STAGE_FIELDS = ("slots", "engine", "model", "timeout", "stall_timeout", "canary", "input_processor", "prompt_expand")
REPLICA_PROCESS = "tests.support.replica_process"


class StageBench:
    """Stage 0 of a pipeline of one `sim` stage; a second stage, when there is one, is never served."""

    def __init__(self, conn: Connection, spec: PipelineSpec) -> None:
        self.conn, self.spec = conn, spec
        self.stage = spec.stages[0]
        self.events: dict[str, list[Event]] = defaultdict(list)
        """Taken from the queue, by request."""
        self.attempts: dict[str, list[Event]] = defaultdict(list)
        """News of failed attempts, by request."""
        self.published: dict[str, int] = defaultdict(int)
        """How often an event was published, by request: also what dedupe swallowed."""

    async def submit(self, rid: str, prompt: str = "one two", **fields: Any) -> Task:
        task = make_task(self.spec, rid, prompt, **fields)
        subject = subjects.task(self.spec.name, 0, task.ticket.lane, rid)
        await self.conn.js_publish(subject, codec.encode(task), subjects.message_id("task", rid, 0, task.ticket.run))
        return task

    async def event(self, rid: str, timeout: float = 10.0) -> Event:
        """The first event of a request."""
        return await eventually(lambda: self.events[rid] and self.events[rid][0], timeout, what=f"an event of {rid}")

    async def result(self, rid: str, timeout: float = 10.0) -> StageResult:
        event = await self.event(rid, timeout)
        assert isinstance(event, StageResult), event
        return event

    async def failure(self, rid: str, timeout: float = 10.0) -> StageFailed:
        event = await self.event(rid, timeout)
        assert isinstance(event, StageFailed), event
        return event

    async def queued(self) -> int:
        """Tasks that nobody has acknowledged."""
        info = await self.conn.api(
            f"STREAM.INFO.{stores.work_stream(self.spec.name)}", {"subjects_filter": f"omni.{self.spec.name}.task.>"}
        )
        return sum((info["state"].get("subjects") or {}).values())

    async def all_done(self, timeout: float = 10.0) -> None:
        async def empty() -> bool:
            return await self.queued() == 0

        await eventually(empty, timeout, what="all tasks are acknowledged")

    @asynccontextmanager
    async def replica(
        self, conn: Connection | None = None, *, stop: bool = True, **options: Any
    ) -> AsyncIterator[Replica]:
        """A replica in this process, up; drained at the end, unless `stop` is false: then it dies without a word."""
        made = Replica(conn or self.conn, self.spec, self.stage, ReplicaOptions(**options))
        running = asyncio.create_task(made.run())
        try:
            await eventually(lambda: running.done() or made.record.status == "up", what="the replica is up")
            if running.done():
                running.result()
            yield made
        finally:
            if stop:
                made.drain()
            else:
                running.cancel()
            async with asyncio.timeout(15):
                await asyncio.wait({running})
        if stop:
            running.result()

    @asynccontextmanager
    async def process(self, name: str, *flags: str, **engine_args: Any) -> AsyncIterator[ChildProcess]:
        """A replica in a process of its own, killed at the end; `engine_args` over those of the stage."""
        stage = msgspec.structs.replace(self.stage, engine_args={**self.stage.engine_args, **engine_args})
        spec = msgspec.structs.replace(self.spec, stages=(stage, *self.spec.stages[1:]))
        process = await start_child(
            sys.executable,
            "-m",
            REPLICA_PROCESS,
            self.conn.url,
            name,
            msgspec.json.encode(spec).decode(),
            *flags,
            stderr=subprocess.PIPE,
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
            process.close()

    async def _take_events(self, puller: Puller) -> None:
        async for delivery in puller:
            event: Event = codec.decode(delivery.data, Event)
            received = self.attempts if isinstance(event, AttemptFailed) else self.events
            received[subjects.parse_rid(delivery.subject)].append(event)
            await delivery.ack()
            puller.add_credit()

    async def _count_published(self, message: ReceivedMessage) -> None:
        if subjects.parse_event(message.subject).kind is not subjects.EventKind.ATTEMPT:
            self.published[subjects.parse_rid(message.subject)] += 1


@asynccontextmanager
async def stage_bench(conn: Connection, pipeline: str, **settings: Any) -> AsyncIterator[StageBench]:
    """`settings` are fields of the stage or of PipelineSpec by name, and for the rest `engine_args` of the stage."""
    timeout = settings.pop("heartbeat_timeout", HEARTBEAT_TIMEOUT)
    of_stage = {name: settings.pop(name) for name in STAGE_FIELDS if name in settings}
    fields = {name: settings.pop(name) for name in ("max_attempts", "lanes", "deadline") if name in settings}
    stage = StageSpec(
        stage_id=0, name="sim", final_output=True, final_output_type="text", engine_args=settings,
        **{"engine": "sim", **of_stage},
    )  # fmt: skip
    spec = PipelineSpec(name=pipeline, stages=(stage,), heartbeat_timeout=timeout, **fields)
    await ensure_layout(conn, layout_of(spec))
    bench = StageBench(conn, spec)
    counter = await conn.subscribe(subjects.events_filter(pipeline), bench._count_published)
    async with Puller(conn, stores.work_stream(pipeline), [stores.EVENTS_CONSUMER]) as puller:
        puller.add_credit(64)
        taking = asyncio.create_task(bench._take_events(puller))
        try:
            yield bench
        finally:
            taking.cancel()
            await counter.unsubscribe()


@asynccontextmanager
async def up(bench: StageBench, stage: StageSpec) -> AsyncIterator[tuple[Replica, asyncio.Task[None]]]:
    """A replica of a stage that is otherwise than the bench's, and its end to look at, whatever it is."""
    made = Replica(bench.conn, bench.spec, stage, ReplicaOptions(grace=0.1))
    running = asyncio.create_task(made.run())
    try:
        await eventually(lambda: running.done() or made.record.status == "up", 20, what="the replica is up")
        yield made, running
    finally:
        made.drain()
        async with asyncio.timeout(20):
            await asyncio.wait({running})


def make_task(spec: PipelineSpec, rid: str, prompt: str = "one two", **fields: Any) -> Task:
    """A task of stage 0; `fields` are of the ticket, or `seconds` until its deadline, `request`, `targets`."""
    now = time.time()
    request = fields.pop("request", None) or Request(prompt=prompt)
    ticket = Ticket(
        rid=rid,
        pipeline=spec.name,
        route=_route(fields.pop("targets", ())),
        created=now,
        deadline=now + fields.pop("seconds", 60.0),
        request=Payload.inline(codec.encode(request), MSGPACK),
        max_attempts=spec.max_attempts,
        **fields,
    )
    return Task(ticket=ticket, stage_id=0, published=now)


def _route(targets: tuple[Forwarding, ...]) -> Route:
    """Stage 0, delivered, and one more stage an edge, numbered from 1."""
    edges = tuple(Target(stage_id=number, forwarding=mode) for number, mode in enumerate(targets, 1))
    first = RouteStage(stage_id=0, sources=(), targets=edges, final="text")
    others = (RouteStage(stage_id=edge.stage_id, sources=(0,), targets=(), final="text") for edge in edges)
    return Route((first, *others))
