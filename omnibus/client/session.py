"""One pipeline, embedded or on a running cluster, and the open requests of one façade. Belongs to one event loop."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import cast

from omnibus.broker.connection import Connection, connect
from omnibus.client.controls import Controls
from omnibus.client.embedded_pipeline import EmbeddedOptions, embedded
from omnibus.client.producer import Producer, Submission
from omnibus.client.request_arguments import Prompt, RequestArguments, final_stages, make_request, text_of
from omnibus.client.request_outputs import OmniRequestOutput, OutputAdapter
from omnibus.errors import InvalidRequest, OmnibusError, RequestConflict, UnknownRequest
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.pipeline.spec import PipelineSpec
from omnibus.registry.deployed_pipelines import load_deployed
from omnibus.requests.state import RequestState
from omnibus.settings import Settings
from omnibus.wire.failure import Failure

Sink = Callable[[OmniRequestOutput], Awaitable[None]]
_CLOCKS_APART = 60.0
"""Seconds by which the clock that a request's arrival was read from may be ahead of ours."""

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Aborted:
    """The acknowledgement of an abort."""

    request_id: str
    state: RequestState | None
    """How the request stands now: `cancelled`, or how it had ended before; None when nobody knows it."""
    texts: dict[int, str]
    """What its texts had come to, by stage."""


class Session:
    """Made by `open_session`."""

    def __init__(self, connection: Connection, producer: Producer, spec: PipelineSpec) -> None:
        self.spec = spec
        self.controls = Controls(connection, spec)
        self._metrics = connection.metrics
        self._producer = producer
        self._open: dict[str, OutputAdapter] = {}
        self._followers: set[asyncio.Task[None]] = set()

    async def submit(
        self, request_id: str | None, prompt: Prompt, arguments: RequestArguments, sink: Sink, *,
        prompt_text: str | None = None, arrival_time: float | None = None, deltas: bool = False,
    ) -> str:  # fmt: skip
        """Submit a request, whose outputs go to `sink`; returns its id when it is accepted. Raises as Producer.submit does.

        An id that this session has open is refused with RequestConflict. The queue wait and the deadline are counted from
        `arrival_time`, seconds since the epoch.
        """
        rid = request_id if request_id is not None else uuid.uuid4().hex
        request = make_request(self.spec, prompt, arguments)
        types = {stage: self.spec.stage(stage).final_output_type or "" for stage in final_stages(self.spec, request)}
        if rid in self._open:
            raise RequestConflict(f"request {rid!r} is running already", param="request_id")
        output_adapter = self._open[rid] = OutputAdapter(rid, prompt_text or text_of(prompt), types, deltas)
        try:
            submission = await self._producer.submit(self.spec, request, rid=rid, arrival=_checked(arrival_time))
        except BaseException:
            del self._open[rid]
            raise
        follower = asyncio.create_task(self._follow(submission, output_adapter, sink), name=f"follow-{rid}")
        self._followers.add(follower)
        follower.add_done_callback(self._followers.discard)
        return rid

    async def abort(self, request_ids: Iterable[str]) -> list[Aborted]:
        """End requests wherever they are, and say how they stand; idempotent, also for ids that nobody knows."""
        return list(await asyncio.gather(*(self._abort(rid) for rid in request_ids)))

    async def close(self) -> None:
        """Follow nothing any more; what was accepted goes on."""
        for follower in self._followers:
            follower.cancel()
        if self._followers:
            await asyncio.wait(self._followers)

    async def _abort(self, rid: str) -> Aborted:
        output_adapter = self._open.get(rid)
        received = output_adapter.texts if output_adapter is not None else {}
        try:
            result = await self._producer.cancel(self.spec.name, rid)
        except UnknownRequest:
            return Aborted(rid, None, dict(received))
        kept = {output.stage_id: output.text for output in result.outputs if output.modality == "text"}
        # Some may have been heard after the replica was asked, or not have been heard here.
        texts = {
            stage: max(received.get(stage, ""), kept.get(stage, ""), key=len) for stage in received.keys() | kept.keys()
        }
        return Aborted(rid, result.state, texts)

    async def _follow(self, submission: Submission, output_adapter: OutputAdapter, sink: Sink) -> None:
        """The root of one request's task."""
        try:
            await self._adapt(submission, output_adapter, sink)
        except OmnibusError as error:
            await sink(output_adapter.lost(Failure.of(error)))
        except Exception as error:  # whoever waits must hear of it
            self._metrics.errors.labels(where="session").inc()
            log.exception(LogEvent.TASK_CRASHED, rid=submission.rid)
            await sink(output_adapter.lost(Failure.of(error)))
        finally:
            self._forget(output_adapter)

    async def _adapt(self, submission: Submission, output_adapter: OutputAdapter, sink: Sink) -> None:
        async with aclosing(submission.events()) as events:
            async for event in events:
                for output in output_adapter.notify(event):
                    if output.finished:
                        self._forget(output_adapter)  # its id is free as soon as its end is told
                    await sink(output)
                    if output.finished:
                        return
        raise UnknownRequest(f"request {submission.rid!r} is no longer in the ledger")

    def _forget(self, output_adapter: OutputAdapter) -> None:
        """Unless the id belongs to a later request by now."""
        if self._open.get(output_adapter.request_id) is output_adapter:
            del self._open[output_adapter.request_id]


@asynccontextmanager
async def open_session(
    target: PipelineSpec | str | None, settings: Settings, *, nats: str | None, options: EmbeddedOptions
) -> AsyncIterator[Session]:
    """A session with a deployed pipeline on the cluster at `nats`; without `nats`, with one that is served from here.

    `target` is the name of the deployed pipeline (None: the only one), or the specification to serve. Raises PipelineError
    for an unknown pipeline, BrokerUnavailable, and as `embedded` does.
    """
    async with AsyncExitStack() as stack:
        if nats is None:
            spec = cast("PipelineSpec", target)
            connection = await stack.enter_async_context(embedded(spec, settings, options))
        else:
            connecting = connect(nats, name="omnibus-client", role="client", credentials=settings.nats_credentials)
            connection = await stack.enter_async_context(connecting)
            name = target.name if isinstance(target, PipelineSpec) else target
            spec = await load_deployed(connection, name)
        producer = await stack.enter_async_context(Producer(connection))
        session = Session(connection, producer, spec)
        stack.push_async_callback(session.close)
        yield session


def _checked(arrival_time: float | None) -> float | None:
    if arrival_time is not None and not 0 <= arrival_time <= time.time() + _CLOCKS_APART:
        raise InvalidRequest("arrival_time is in seconds since the epoch, and not ahead of now", param="arrival_time")
    return arrival_time
