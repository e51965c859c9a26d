"""One pipeline, embedded or on a running cluster, and the open requests of one façade. Belongs to one event loop."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

from msgspec.structs import replace

from omnibus.broker.connection import Connection, connect
from omnibus.broker.discovery import discover
from omnibus.client.controls import Controls
from omnibus.client.embedded_pipeline import EmbeddedOptions, embedded
from omnibus.client.output_queue import OutputQueue
from omnibus.client.producer import Producer, Submission
from omnibus.client.request_arguments import NamedAdapter, Prompt, make_request, segment_of, text_of
from omnibus.client.request_outputs import OmniRequestOutput, OutputAdapter
from omnibus.errors import BrokerUnavailable, InvalidRequest, OmnibusError, RequestConflict, UnknownRequest
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.payloads.transports import Transports
from omnibus.pipeline.routing import plan_route
from omnibus.pipeline.spec import PipelineSpec
from omnibus.registry.deployed_pipelines import load_deployed
from omnibus.requests.state import RequestState
from omnibus.settings import Settings
from omnibus.wire.failure import Failure
from omnibus.wire.request import Request, Segment

_CLOCKS_APART = 60.0
"""Seconds by which the clock that a request's arrival was read from may be ahead of ours."""
_KEPT_OF_AN_ID = 31
_MOST_RIDS = 65_536

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Aborted:
    """The acknowledgement of an abort."""

    request_id: str
    state: RequestState | None
    """How the request stands now: `cancelled`, or how it had ended before; None when nobody knows it."""
    texts: dict[int, str]
    """Its partial texts, by stage."""


class Session(Controls):
    """Made by `open_session`; whatever a façade can be asked for, it asks of one of these."""

    def __init__(
        self, connection: Connection, producer: Producer, spec: PipelineSpec, outputs: OutputQueue[OmniRequestOutput]
    ) -> None:
        """`outputs` takes the outputs of `add_request`."""
        super().__init__(connection, spec)
        self.producer, self._outputs = producer, outputs
        self._open: dict[str, OutputAdapter] = {}
        self._followers: set[asyncio.Task[None]] = set()
        self._rids: dict[str, str] = {}
        """The id in the ledger of requests whose own id an ended one has there; the oldest give way."""

    async def add_request(  # noqa: PLR0913, PLR0917 vLLM's signature
        self,
        request_id: str,
        prompt: Prompt,
        prompt_text: str | None = None,
        sampling_params_list: Sequence[Any] | None = None,
        final_stage_id: int | None = None,
        final_output_stage_ids: Sequence[int] | None = None,
        arrival_time: float | None = None,
        lora_request: str | NamedAdapter | None = None,
        trace_headers: Mapping[str, str] | None = None,
        priority: int = 0,
        data_parallel_rank: int | None = None,
        *,
        resumable: bool = False,
    ) -> None:
        """Submit a request; accepted when this returns.

        `prompt_text` is the text of a prompt of token ids, which its outputs carry. `sampling_params_list` has one entry a
        stage. `final_stage_id` alone: the outputs of that stage and of those it needs; `final_output_stage_ids`: exactly
        these. The deadline and the time in the queue count from `arrival_time`, seconds since the epoch. `priority` is
        vLLM's: lower runs earlier, above 0 waits in the batch lane where there is one. `lora_request` names an adapter of
        a stage's `lora_modules`. `trace_headers` reach every stage. An id is free again when its request has ended.

        `resumable`: the prompt is the first segment of an open input, others follow by `add_streaming_update`, and pieces of
        texts are outputs, too.

        Raises InvalidRequest naming an argument that would have no effect, `data_parallel_rank` always;
        any RequestError for what the pipeline cannot serve; RequestConflict for an id that is in use; Overloaded.
        """
        request = make_request(
            self.spec, prompt, sampling_params_list=sampling_params_list, final_stage_id=final_stage_id,
            final_output_stage_ids=final_output_stage_ids, lora_request=lora_request, trace_headers=trace_headers,
            priority=priority, data_parallel_rank=data_parallel_rank, resumable=resumable,
        )  # fmt: skip
        await self.submit(
            request_id, request, self._outputs, prompt_text=prompt_text, arrival_time=arrival_time, deltas=resumable
        )

    async def add_streaming_update(  # noqa: PLR0917 vLLM-Omni's signature
        self,
        request_id: str,
        prompt: Prompt | None,
        prompt_text: str | None = None,
        sampling_params_list: Sequence[Any] | None = None,
        final_stage_id: int | None = None,
        arrival_time: float | None = None,
        *,
        resumable: bool = True,
    ) -> None:
        """Send a further segment of a request that was added as `resumable`; stored when this returns.

        The last one is not `resumable`; with None for a prompt it only ends the input. Raises UnknownRequest; InputClosed when
        the input or the request has ended; InvalidRequest naming an argument that the first segment has decided; and as
        `Producer.send_segment`.
        """
        decided = {
            "prompt_text": prompt_text, "sampling_params_list": sampling_params_list,
            "final_stage_id": final_stage_id, "arrival_time": arrival_time,
        }  # fmt: skip
        if (name := next((name for name, value in decided.items() if value is not None), None)) is not None:
            raise InvalidRequest(f"{name} is of the whole request: give it with the first segment", param=name)
        segment = Segment(end=not resumable) if prompt is None else segment_of(prompt, end=not resumable)
        await self.producer.send_segment(self.spec, self._rids.get(request_id, request_id), segment)

    async def submit(
        self, request_id: str, request: Request, outputs: OutputQueue[OmniRequestOutput], *,
        prompt_text: str | None = None, arrival_time: float | None = None, deltas: bool = False,
    ) -> None:  # fmt: skip
        """Submit a request, whose outputs go to a queue; accepted when this returns. Raises as Producer.submit does.

        An id that this session has open is refused with RequestConflict. The queue wait and the deadline are counted from
        `arrival_time`, seconds since the epoch.
        """
        if request_id in self._open:
            raise RequestConflict(f"request {request_id!r} is running already", param="request_id")
        if not deltas and any(stage.final == "audio" for stage in plan_route(self.spec, request.modalities).finals):
            request = replace(request, stream=False)  # pieces of a sound would be stored that nobody takes
        adapter = OutputAdapter(request_id, prompt_text or text_of(request), deltas)
        self._open[request_id] = adapter
        try:
            submission = await self._accepted(request_id, request, _checked(arrival_time))
        except BaseException:
            del self._open[request_id]
            raise
        follower = asyncio.create_task(self._follow(submission, adapter, outputs), name=f"follow-{request_id}")
        self._followers.add(follower)
        follower.add_done_callback(self._followers.discard)

    async def _accepted(self, request_id: str, request: Request, arrival: float | None) -> Submission:
        """The request, accepted; under another id in the ledger where that of an ended request still has its own."""
        known = self._rids.get(request_id, request_id)
        try:
            submission = await self.producer.submit(self.spec, request, rid=known, arrival=arrival)
            if not (submission.attached and submission.ended):
                return submission
        except RequestConflict:
            if not await self._has_ended(known):
                raise
        self._rids.pop(request_id, None)
        rid = self._rids[request_id] = f"{request_id[:_KEPT_OF_AN_ID]}-{uuid.uuid4().hex}"
        while len(self._rids) > _MOST_RIDS and (oldest := next(iter(self._rids))) not in self._open:
            del self._rids[oldest]
        return await self.producer.submit(self.spec, request, rid=rid, arrival=arrival)

    async def _has_ended(self, rid: str) -> bool:
        try:
            return (await self.producer.attach(self.spec.name, rid)).ended
        except UnknownRequest:  # it has just expired
            return True

    async def abort(self, request_ids: str | Iterable[str], timeout: float | None = None) -> list[Aborted]:
        """End one or many requests wherever they are, and say how they stand; idempotent, also for ids that nobody knows.

        The answers hold the text that each had come to. The outputs of a request that is open here end with one whose
        `finish_reason` is "abort". Raises TimeoutError when it takes more than `timeout` seconds; they may end all the same.
        """
        rids = [request_ids] if isinstance(request_ids, str) else request_ids
        async with asyncio.timeout(timeout):
            return list(await asyncio.gather(*(self._abort(rid) for rid in rids)))

    async def close(self) -> None:
        """Follow nothing any more; what was accepted goes on."""
        for follower in self._followers:
            follower.cancel()
        if self._followers:
            await asyncio.wait(self._followers)

    async def _abort(self, request_id: str) -> Aborted:
        adapter = self._open.get(request_id)
        received = adapter.texts if adapter is not None else {}
        try:
            result = await self.producer.cancel(self.spec.name, self._rids.get(request_id, request_id))
        except UnknownRequest:
            return Aborted(request_id, None, dict(received))
        kept = {output.stage_id: output.text for output in result.outputs if output.modality == "text"}
        # Some text may have come after the replica was asked, or not have come here.
        texts = {
            stage: max(received.get(stage, ""), kept.get(stage, ""), key=len) for stage in received.keys() | kept.keys()
        }
        return Aborted(request_id, result.state, texts)

    async def _follow(
        self, submission: Submission, adapter: OutputAdapter, outputs: OutputQueue[OmniRequestOutput]
    ) -> None:
        """The root of one request's task."""
        try:
            async with aclosing(submission.events()) as events:
                async for event in events:
                    for output in adapter.notify(event):
                        if output.finished:
                            self._forget(adapter)  # its id is free as soon as its end is known
                        await outputs.put(output)
                        if output.finished:
                            return
        except OmnibusError as error:
            await outputs.put(adapter.lost(Failure.of(error)))
        except Exception as error:  # its taker must get an end
            self._connection.metrics.errors.labels(where="session").inc()
            log.exception(LogEvent.TASK_CRASHED, rid=submission.rid)
            await outputs.put(adapter.lost(Failure.of(error)))
        finally:
            self._forget(adapter)

    def _forget(self, adapter: OutputAdapter) -> None:
        """Unless the id belongs to a later request by now."""
        if self._open.get(adapter.request_id) is adapter:
            del self._open[adapter.request_id]


@asynccontextmanager
async def open_session(
    target: PipelineSpec | str | None, settings: Settings, *, nats: str | None, options: EmbeddedOptions,
    outputs: OutputQueue[OmniRequestOutput],
) -> AsyncIterator[Session]:  # fmt: skip
    """A session with a deployed pipeline on the cluster at `nats`; without `nats`, with one that is served from here.

    `target` is the name of the deployed pipeline (None: the only one), or the specification to serve. `outputs` is for the
    session. Raises PipelineError for an unknown pipeline, BrokerUnavailable, and as `embedded` does.
    """
    async with AsyncExitStack() as stack:
        if nats is None:
            spec = cast("PipelineSpec", target)
            connection = await stack.enter_async_context(embedded(spec, settings, options))
        else:
            found = discover(settings.model_copy(update={"nats_url": nats}))
            name = target.name if isinstance(target, PipelineSpec) else target
            try:
                async with asyncio.timeout(options.init_timeout):
                    connection = await stack.enter_async_context(
                        connect(found.url, name="omnibus-client", role="client", access=found.access)
                    )
                    spec = await load_deployed(connection, name)
            except TimeoutError as error:
                raise BrokerUnavailable(f"{nats} did not answer within {options.init_timeout:g} s") from error
        producer = await stack.enter_async_context(Producer(connection, Transports.of(settings)))
        session = Session(connection, producer, spec, outputs)
        stack.push_async_callback(session.close)
        yield session


def _checked(arrival_time: float | None) -> float | None:
    if arrival_time is not None and not 0 <= arrival_time <= time.time() + _CLOCKS_APART:
        raise InvalidRequest("arrival_time is in seconds since the epoch, and not ahead of now", param="arrival_time")
    return arrival_time
