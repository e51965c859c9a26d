"""The flows of one stage: the one that a task reads, the one that it writes, and the tasks of those who read that."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress

from omnibus.broker.connection import Connection
from omnibus.errors import AttemptSuperseded, BrokerError, Unreadable
from omnibus.flows.flow_name import FlowName
from omnibus.flows.pacing import Pacing
from omnibus.flows.reader import FlowReader, OnSilence
from omnibus.flows.writer import FlowWriter
from omnibus.ledger.performer import Performer
from omnibus.payloads.store import PayloadStore
from omnibus.pipeline.spec import PipelineSpec
from omnibus.requests.advance import flow_tasks
from omnibus.requests.record import BEYOND_DEADLINE
from omnibus.wire.envelope import Task, Ticket
from omnibus.wire.out import Fence
from omnibus.wire.payload import Payloads
from omnibus.wire.request import Request
from omnibus.workers.engines.protocol import Outputs
from omnibus.workers.flow_input import FlowInput
from omnibus.workers.flow_output import FlowOutput
from omnibus.workers.open_input import OpenInput
from omnibus.workers.output_writer import OutputWriter
from omnibus.workers.playout_delay import MediaPace, PlayoutDelay


class StageFlows:
    """Makes the inputs and outputs of tasks that are flows."""

    def __init__(
        self, conn: Connection, spec: PipelineSpec, kinds: Mapping[str, str],
        *, outputs: OutputWriter, store: PayloadStore, performer: Performer,
    ) -> None:  # fmt: skip
        """`kinds` are the outputs that the engine declares."""
        self._conn, self._spec, self._kinds = conn, spec, kinds
        self._outputs, self._store, self._performer = outputs, store, performer
        self._pace = MediaPace()

    def input(self, task: Task, request: Request) -> FlowInput | None:
        """The flow that a task reads, None where all its inputs are whole."""
        is_open = task.ticket.resumable and not task.ticket.route[task.stage_id].sources
        if task.flow is None and not is_open:
            return None
        # A little later than the request's own timer, which tells the same to everybody.
        deadline = task.ticket.deadline + BEYOND_DEADLINE / 2
        if task.flow is None:
            name, silence = FlowName.of_input(task.ticket), self._spec.input_timeout
            reader = FlowReader(
                self._conn, name, deadline=deadline, reader=task.stage_id, lease=self._spec.heartbeat_timeout,
                is_there=False, silence=silence, on_silence=self._asking(task.ticket),
            )  # fmt: skip
            return OpenInput(reader, self._store, request)
        reader = FlowReader(
            self._conn, self._name(task, task.flow),
            deadline=deadline, reader=task.stage_id, lease=self._spec.heartbeat_timeout,
            on_silence=self._asking(task.ticket),
        )  # fmt: skip
        return FlowInput(reader, self._store)

    def output(self, task: Task, fence: Fence, request: Request) -> FlowOutput | None:
        """The flow that a task writes: for the stages that read it, and for a caller that is sent media while they are made."""
        stage = task.ticket.route[task.stage_id]
        is_for_caller = task.ticket.front is not None and request.stream
        media = self._outputs.media(stage.final) if is_for_caller else None
        if not stage.streams_to and media is None:
            return None

        async def pack(outputs: Outputs) -> Payloads:
            return await self._outputs.chunk(task, outputs, media)

        async def unpack(chunk: Payloads) -> Outputs:
            return {name: await self._store.value(payload, task.ticket.rid) for name, payload in chunk.items()}

        began, seconds = time.monotonic(), self._conn.metrics.flow_first_chunk_seconds

        async def publish_readers() -> None:
            seconds.labels(task.ticket.pipeline, str(task.stage_id)).observe(time.monotonic() - began)
            for effect in flow_tasks(task, self._conn.clock.now()):
                await self._performer.publish(effect)

        name = self._name(task, task.stage_id)
        writer = FlowWriter(
            self._conn, name, fence,
            pacing=Pacing(
                self._conn, name, stage.streams_to,
                lease=self._spec.heartbeat_timeout, on_silence=self._asking(task.ticket),
            ),
            most=self._spec.max_flow_bytes, on_begun=publish_readers,
        )  # fmt: skip
        is_read = bool(stage.streams_to)
        playout = None if media is None or is_read else PlayoutDelay(self._pace, media)
        if task.ticket.resumable:  # a player waits for an open input, not for the stage
            playout = None
        kinds = self._kinds if is_read else {}
        return FlowOutput(writer, kinds, pack, unpack, is_needed=is_read, playout=playout)

    def _asking(self, ticket: Ticket) -> OnSilence:
        """Ask an orchestrator about a request: the flows of one that has ended are removed, which their readers notice.

        What is asked raises AttemptSuperseded where the request has had another run since: nobody goes on with this one.
        """

        async def ask() -> None:
            run = 0
            with suppress(BrokerError, Unreadable):
                run = await self._performer.ask_orphans(ticket.rid)
            if abs(run) > ticket.run:
                over = f"run {ticket.run} of request {ticket.rid!r} was given up for run {abs(run)}"
                raise AttemptSuperseded(over, is_same_task=False)

        return ask

    def _name(self, task: Task, stage_id: int) -> FlowName:
        return FlowName.of(task.ticket, stage_id, self._spec.stage_name(stage_id))
