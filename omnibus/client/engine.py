"""AsyncOmniEngine: a pipeline behind plain methods, on a background thread with a loop of its own."""

from __future__ import annotations

import atexit
import os
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from omnibus.client.embedded_pipeline import EmbeddedOptions
from omnibus.client.engine_thread import EngineThread
from omnibus.client.output_queue import OutputQueue
from omnibus.client.request_arguments import NamedAdapter, Prompt, RequestArguments
from omnibus.client.request_outputs import OmniRequestOutput
from omnibus.client.rpc import CollectiveAnswer
from omnibus.client.session import Aborted, Session, open_session
from omnibus.client.single_stage import Target, pipeline_for
from omnibus.client.stage_info import StageRuntimeInfo, stage_info, supported_tasks
from omnibus.errors import EngineDead, InvalidRequest
from omnibus.observability.logging import configure_quietly
from omnibus.pipeline.spec import PipelineSpec
from omnibus.settings import Settings

T = TypeVar("T")


class AsyncOmniEngine:
    """Serves a pipeline from here, or uses one that runs on a cluster.

    `model` is a pipeline file, the name of a shipped pipeline, a PipelineSpec, or the folder of a checkpoint, which is
    served as one stage with `engine_args`. With `nats` (or OMNIBUS_NATS_URL) it is the name of a deployed pipeline, or None
    for the only one; nothing is started, and the timeouts, in seconds, mean nothing. `log_level` is for this process, unless
    it has configured structlog itself, and for the replicas. Everything is up when the constructor returns.

    Outputs of all requests come from `try_get_output`. Every method may be called from any thread; those that end in
    `_async` from any event loop. `shutdown` when done, or use it in a `with`.

    Raises PipelineError, BrokerUnavailable, ConfigError, and StageStartError naming what is not up in time.
    """

    def __init__(
        self, model: Target | None = None, init_timeout: float = 600, stage_init_timeout: float = 300, *,
        nats: str | None = None, state_dir: str | os.PathLike[str] | None = None, log_level: str = "warning",
        **engine_args: Any,
    ) -> None:  # fmt: skip
        configure_quietly(log_level)
        settings = Settings()
        nats = nats or settings.nats_url
        if nats is not None and state_dir is not None:
            raise InvalidRequest("state_dir is for a pipeline served from here, not for a cluster", param="state_dir")
        target = _deployed(model, engine_args) if nats is not None else _own(model, engine_args)
        options = EmbeddedOptions(
            state_dir=Path(state_dir) if state_dir is not None else None,
            init_timeout=init_timeout, stage_init_timeout=stage_init_timeout, log_level=log_level,
        )  # fmt: skip
        self._boxes: set[OutputQueue[OmniRequestOutput]] = set()
        self._outputs = self.new_box()
        self._thread = EngineThread(
            lambda: open_session(target, settings, nats=nats, options=options), shutdown_hook=self._close_boxes
        )
        atexit.register(self.shutdown)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    # What it is

    @property
    def session(self) -> Session:
        """What runs on the thread; its coroutines go through `run` or `run_async`."""
        return self._thread.session

    @property
    def spec(self) -> PipelineSpec:
        return self.session.spec

    @property
    def num_stages(self) -> int:
        return len(self.spec.stages)

    @property
    def stage_metadata(self) -> list[StageRuntimeInfo]:
        """Of every stage, in their order."""
        return [stage_info(stage) for stage in self.spec.stages]

    @property
    def default_sampling_params_list(self) -> list[dict[str, Any]]:
        """Of every stage, in their order; a copy."""
        return [dict(stage.default_sampling_params) for stage in self.spec.stages]

    @property
    def supported_tasks(self) -> tuple[str, ...]:
        """What the pipeline can do: `generate` for text, `text-to-image`, `text-to-speech`, …"""
        return supported_tasks(self.spec)

    def is_alive(self) -> bool:
        """Whether requests can be added."""
        return self._thread.alive

    def get_stage_metadata(self, stage_id: int) -> StageRuntimeInfo:
        """Of one stage; raises PipelineError for an unknown one."""
        return stage_info(self.spec.stage(stage_id))

    # Requests

    def add_request(  # noqa: PLR0913, PLR0917 vLLM's signature
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
        a stage's `lora_modules`. `trace_headers` reach every stage.

        Raises InvalidRequest naming an argument that would have no effect, `data_parallel_rank` and `resumable` always;
        any RequestError for what the pipeline cannot serve; RequestConflict for an id that is in use; Overloaded.
        """
        arguments = RequestArguments(
            sampling_params_list=sampling_params_list, final_stage_id=final_stage_id,
            final_output_stage_ids=final_output_stage_ids, lora_request=lora_request, trace_headers=trace_headers,
            priority=priority, data_parallel_rank=data_parallel_rank, resumable=resumable,
        )  # fmt: skip
        self.run(self._add(request_id, prompt, arguments, prompt_text, arrival_time))

    async def add_request_async(  # noqa: PLR0913, PLR0917 vLLM's signature
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
        """See `add_request`."""
        arguments = RequestArguments(
            sampling_params_list=sampling_params_list, final_stage_id=final_stage_id,
            final_output_stage_ids=final_output_stage_ids, lora_request=lora_request, trace_headers=trace_headers,
            priority=priority, data_parallel_rank=data_parallel_rank, resumable=resumable,
        )  # fmt: skip
        await self.run_async(self._add(request_id, prompt, arguments, prompt_text, arrival_time))

    def add_streaming_update(self, request_id: str, *_: Any, **__: Any) -> None:
        """Always raises InvalidRequest: requests take no further input yet."""
        raise InvalidRequest(f"request {request_id!r}: streaming input is not there yet", param="resumable")

    async def add_streaming_update_async(self, request_id: str, *_: Any, **__: Any) -> None:
        """See `add_streaming_update`."""
        self.add_streaming_update(request_id)

    def abort(self, request_ids: str | Sequence[str]) -> list[Aborted]:
        """End one or many requests wherever they are; idempotent. The answers hold the text that was heard of each.

        The outputs of a request that is open here end with one whose `finish_reason` is "abort".
        """
        return self.run(self.session.abort(_ids(request_ids)))

    async def abort_async(self, request_ids: str | Sequence[str]) -> list[Aborted]:
        """See `abort`."""
        return await self.run_async(self.session.abort(_ids(request_ids)))

    def try_get_output(self, timeout: float | None = 0.001) -> OmniRequestOutput | None:
        """The next output of any request, None when there is none within `timeout` seconds; raises EngineDead at the end."""
        return self._outputs.take(timeout)

    async def try_get_output_async(self, timeout: float | None = 0.001) -> OmniRequestOutput | None:
        """See `try_get_output`; cancelling it loses no output."""
        return await self._outputs.take_async(timeout)

    # Replicas

    def collective_rpc(
        self, method: str, timeout: float | None = None, args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None, stage_ids: Sequence[int] | None = None,
    ) -> CollectiveAnswer:  # fmt: skip
        """Call a control method of every replica of these stages at once (None: all); each has `timeout` seconds.

        Who did not answer is listed in the result. Adding and aborting go on meanwhile.
        """
        return self.run(self.session.controls.collective_rpc(method, timeout, args, kwargs, stage_ids))

    async def collective_rpc_async(
        self, method: str, timeout: float | None = None, args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None, stage_ids: Sequence[int] | None = None,
    ) -> CollectiveAnswer:  # fmt: skip
        """See `collective_rpc`."""
        return await self.run_async(self.session.controls.collective_rpc(method, timeout, args, kwargs, stage_ids))

    def shutdown(self) -> None:
        """End everything that was started here; idempotent. On a cluster, requests that were accepted go on."""
        atexit.unregister(self.shutdown)
        self._thread.stop()

    # For the other façades

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine of the session and wait for it; raises EngineDead when the engine is not alive."""
        return self._thread.call(work)

    async def run_async(self, work: Coroutine[Any, Any, T]) -> T:
        """The same, without blocking the caller's loop."""
        return await self._thread.call_async(work)

    def new_box(self) -> OutputQueue[OmniRequestOutput]:
        """A queue of outputs that is closed with the engine."""
        box: OutputQueue[OmniRequestOutput] = OutputQueue()
        self._boxes.add(box)
        return box

    def drop_box(self, box: OutputQueue[OmniRequestOutput]) -> None:
        """Nobody takes from it any more."""
        self._boxes.discard(box)
        box.close(EngineDead("nobody takes these outputs any more"))

    async def _add(
        self, rid: str, prompt: Prompt, arguments: RequestArguments, prompt_text: str | None, arrival_time: float | None
    ) -> None:
        await self.session.submit(
            rid, prompt, arguments, self._outputs.put, prompt_text=prompt_text, arrival_time=arrival_time
        )

    def _close_boxes(self, reason: Exception) -> None:
        for box in tuple(self._boxes):
            box.close(reason)


def _own(model: Target | None, engine_args: Mapping[str, Any]) -> PipelineSpec:
    if model is None:
        raise InvalidRequest("name a pipeline or a checkpoint's folder, or a running cluster with nats=", param="model")
    return pipeline_for(model, engine_args)


def _deployed(model: Target | None, engine_args: Mapping[str, Any]) -> PipelineSpec | str | None:
    """The name of a deployed pipeline; of a file, the name that is in it."""
    is_name = model is None or (
        isinstance(model, str) and os.sep not in model and not model.endswith((".yaml", ".yml"))
    )
    if is_name and not engine_args:
        return model if isinstance(model, str) else None
    return pipeline_for(model or "", engine_args)


def _ids(request_ids: str | Sequence[str]) -> Sequence[str]:
    return [request_ids] if isinstance(request_ids, str) else request_ids
