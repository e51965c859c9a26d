"""Omni: many prompts in, all outputs back, in order."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from omnibus.client.omni_base import OmniBase, blocking
from omnibus.client.producer import Submission
from omnibus.client.progress_bar import Bar
from omnibus.client.request_arguments import NamedAdapter, Prompt, make_request, text_of
from omnibus.client.request_events import ABORT, Output
from omnibus.client.session import Aborted, Session
from omnibus.errors import OmnibusError, Overloaded
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.requests.request_checks import validate
from omnibus.wire.envelope import StageTiming
from omnibus.wire.failure import Failure
from omnibus.wire.request import Request

_log = get_logger(__name__)
AHEAD = 2
"""Prompts open at the same time, for each slot of the pipeline's widest stage: a deadline starts with the submission. Of a
stage that workers elsewhere serve one replica is counted."""


@dataclass(slots=True)
class OmniResult:
    """All outputs of one prompt."""

    request_id: str
    prompt: str | None
    outputs: list[Output] = field(default_factory=list)
    """In the order of the stages."""
    failure: Failure | None = None
    """Why some are missing."""
    timings: tuple[StageTiming, ...] = ()

    def output(self, modality: str) -> Output | None:
        """The first output of a modality."""
        return next((output for output in self.outputs if output.modality == modality), None)

    @property
    def text(self) -> str:
        """The first text; empty when there is none."""
        output = self.output("text")
        return output.text if output is not None else ""

    @property
    def finish_reason(self) -> str | None:
        """Finish reason of the first output; "abort" when the request was aborted before it had one."""
        return self.outputs[0].finish_reason if self.outputs else ABORT if self.failure is not None else None

    def raise_for_failure(self) -> None:
        """Raise what the request failed of, an abort included."""
        if self.failure is not None:
            raise self.failure.exception()


class Omni(OmniBase):
    """Runs batches of prompts; arguments and errors are those of OmniBase. `close` when done, or use it in a `with`."""

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params_list: Sequence[Any] | None = None,
        *,
        output_modalities: Sequence[str] | None = None,
        use_tqdm: bool = True,
        lora_request: str | NamedAdapter | None = None,
        trace_headers: Mapping[str, str] | None = None,
        priority: int = 0,
        deadline: float | None = None,
    ) -> list[OmniResult]:
        """Run every prompt, and return their results in the same order.

        `sampling_params_list` (one entry a stage) and the rest are for all of them. A progress bar is on stderr, if that
        is a terminal and `use_tqdm` is true. A prompt that fails has a `failure` in its result, and disturbs no other.
        Raises a RequestError for a prompt that the pipeline cannot serve, before any is run. Ctrl-C aborts what is open.
        """
        requests = [
            replace(
                make_request(
                    self.spec, prompt, sampling_params_list=sampling_params_list, modalities=output_modalities,
                    lora_request=lora_request, trace_headers=trace_headers, priority=priority, deadline=deadline,
                ),
                stream=False,
            )
            for prompt in _as_batch(prompts)
        ]  # fmt: skip
        for request in requests:
            validate(self.spec, request)
        rids = [uuid.uuid4().hex for _ in requests]
        with Bar(len(requests), visible=use_tqdm) as bar:
            try:
                return self.run(self._run_all(requests, rids, bar))
            except KeyboardInterrupt:
                self.abort(rids)
                raise

    def abort(self, request_id: str | Iterable[str], timeout: float | None = None) -> list[Aborted]:
        """See Session.abort; from another thread while `generate` runs. It does nothing after a shutdown."""
        return [] if self.stopped else self.run(self.session.abort(request_id, timeout))

    # Control of all replicas: see client.controls.Controls

    collective_rpc = blocking(Session.collective_rpc)
    pause_generation = blocking(Session.pause_generation)
    resume_generation = blocking(Session.resume_generation)
    is_paused = blocking(Session.is_paused)
    sleep = blocking(Session.sleep)
    wake_up = blocking(Session.wake_up)
    is_sleeping = blocking(Session.is_sleeping)
    start_profile = blocking(Session.start_profile)
    stop_profile = blocking(Session.stop_profile)
    reset_prefix_cache = blocking(Session.reset_prefix_cache)

    close = OmniBase.shutdown

    async def _run_all(self, requests: Sequence[Request], rids: Sequence[str], bar: Bar) -> list[OmniResult]:
        """On the engine's loop."""
        widest = max(stage.slots * max(1, stage.num_replicas) for stage in self.spec.stages)
        slots = asyncio.Semaphore(AHEAD * widest)

        async def run(rid: str, request: Request) -> OmniResult:
            async with slots:
                result = await self._run(rid, request)
            bar.count(failed=result.failure is not None)
            return result

        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(run(rid, request), name=f"prompt-{rid}")
                for rid, request in zip(rids, requests, strict=True)
            ]
        return [task.result() for task in tasks]

    async def _run(self, rid: str, request: Request) -> OmniResult:
        done = OmniResult(rid, text_of(request))
        try:
            result = await (await self._submit(rid, request)).result()  # the request's deadline ends it at the latest
        except OmnibusError as error:
            done.failure = Failure.of(error)
        except Exception as error:  # noqa: BLE001 the root of a prompt's task, which disturbs no other
            self.session.producer.connection.metrics.errors.labels(where="omni").inc()
            _log.exception(LogEvent.TASK_CRASHED, rid=rid)
            done.failure = Failure.of(error)
        else:
            done.outputs, done.failure, done.timings = list(result.outputs), result.failure, result.timings
        return done

    async def _submit(self, rid: str, request: Request) -> Submission:
        """Submit a prompt; while others fill the pipeline it waits, for as long as the pipeline lets a request take."""
        until = time.monotonic() + self.spec.deadline
        while True:
            try:
                return await self.session.producer.submit(self.spec, request, rid=rid)
            except Overloaded as error:
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(error.retry_after)


def _as_batch(prompts: Prompt | Sequence[Prompt]) -> Sequence[Any]:
    """One prompt alone is a batch of one; a list of token ids is one prompt."""
    if isinstance(prompts, str) or not isinstance(prompts, Sequence):
        return [prompts]
    is_token_ids = len(prompts) > 0 and all(isinstance(one, int) for one in prompts)
    return [prompts] if is_token_ids else prompts
