"""AsyncOmniEngine: a pipeline behind plain methods, on a background thread with a loop of its own."""

from __future__ import annotations

import atexit
import os
from collections.abc import Coroutine, Iterable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

from omnibus.client.embedded_pipeline import EmbeddedOptions
from omnibus.client.engine_thread import EngineThread, blocking, from_any_loop
from omnibus.client.output_queue import OutputQueue
from omnibus.client.request_outputs import OmniRequestOutput
from omnibus.client.session import Aborted, Session, open_session
from omnibus.client.single_stage import Target, pipeline_for
from omnibus.client.stage_info import StageRuntimeInfo, stage_info, supported_tasks
from omnibus.errors import EngineDead, InvalidRequest
from omnibus.observability.logging import configure_quietly
from omnibus.pipeline.spec import PipelineSpec
from omnibus.settings import Settings

T = TypeVar("T")
STAGE_INIT_TIMEOUT = 300.0
"""Seconds that one engine may take to load, where nobody says otherwise."""


class AsyncOmniEngine:
    """Serves a pipeline from here, or uses one that runs on a cluster.

    `model` is a pipeline file, the name of a shipped pipeline, a PipelineSpec, or the folder of a checkpoint, which is
    served as one stage with `engine_args`. With `nats` (or OMNIBUS_NATS_URL) it is the name of a deployed pipeline, or None
    for the only one; nothing is started, and `stage_init_timeout` is refused. Timeouts are seconds: of one stage's start, and
    of everything. `log_level` is for this process, unless it has configured structlog itself, and for the replicas. Everything
    is up when the constructor returns.

    Outputs of all requests come from `try_get_output`. Every method may be called from any thread; those that end in
    `_async` from any event loop. `shutdown` when done, or use it in a `with`.

    Raises PipelineError, BrokerUnavailable, ConfigError, and StageStartError naming what is not up in time.
    """

    def __init__(
        self, model: Target | None = None, stage_init_timeout: float = STAGE_INIT_TIMEOUT, init_timeout: float = 600, *,
        nats: str | None = None, state_dir: str | os.PathLike[str] | None = None, log_level: str = "warning",
        **engine_args: Any,
    ) -> None:  # fmt: skip
        configure_quietly(log_level)
        settings = Settings()
        nats = nats or settings.nats_url
        if nats is not None and state_dir is not None:
            raise InvalidRequest("state_dir is for a pipeline served from here, not for a cluster", param="state_dir")
        if nats is not None and stage_init_timeout != STAGE_INIT_TIMEOUT:
            raise InvalidRequest(
                "stage_init_timeout is for stages that start here, not on a cluster", param="stage_init_timeout"
            )
        target = _deployed(model, engine_args) if nats is not None else _own(model, engine_args)
        options = EmbeddedOptions(
            state_dir=Path(state_dir) if state_dir is not None else None,
            init_timeout=init_timeout, stage_init_timeout=stage_init_timeout, log_level=log_level,
        )  # fmt: skip
        self._queues: set[OutputQueue[OmniRequestOutput]] = set()
        self._outputs = self.new_queue()
        self._thread = EngineThread(
            lambda: open_session(target, settings, nats=nats, options=options, outputs=self._outputs),
            shutdown_hook=self._close_queues,
        )
        atexit.register(self.shutdown)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    # What it is

    @property
    def engine(self) -> Self:
        return self

    @property
    def session(self) -> Session:
        """The session on the thread; its coroutines go through `run` or `run_async`."""
        return self._thread.session

    @property
    def spec(self) -> PipelineSpec:
        return self.session.spec

    @property
    def num_stages(self) -> int:
        return len(self.spec.stages)

    @property
    def stage_metadata(self) -> list[StageRuntimeInfo]:
        """Information on every stage, in their order."""
        return [stage_info(stage) for stage in self.spec.stages]

    @property
    def default_sampling_params_list(self) -> list[dict[str, Any]]:
        """Default sampling parameters of every stage, in their order; a copy."""
        return [dict(stage.default_sampling_params) for stage in self.spec.stages]

    @property
    def supported_tasks(self) -> tuple[str, ...]:
        """The tasks that the pipeline can do: `generate` for text, `text-to-image`, `text-to-speech`, …"""
        return supported_tasks(self.spec)

    def is_alive(self) -> bool:
        """Whether requests can be added."""
        return self._thread.alive

    def get_stage_metadata(self, stage_id: int) -> StageRuntimeInfo:
        """Return the information on one stage; raises PipelineError for an unknown one."""
        return stage_info(self.spec.stage(stage_id))

    # Requests: see client.session.Session

    add_request = blocking(Session.add_request)
    add_request_async = from_any_loop(Session.add_request)
    add_streaming_update = blocking(Session.add_streaming_update)
    add_streaming_update_async = from_any_loop(Session.add_streaming_update)

    def abort(self, request_ids: str | Iterable[str], timeout: float | None = None) -> list[Aborted]:
        """See Session.abort; does nothing after a shutdown."""
        return [] if self._thread.stopped else self.run(self.session.abort(request_ids, timeout))

    async def abort_async(self, request_ids: str | Iterable[str], timeout: float | None = None) -> list[Aborted]:
        """See `abort`."""
        return [] if self._thread.stopped else await self.run_async(self.session.abort(request_ids, timeout))

    def try_get_output(self, timeout: float | None = 0.001) -> OmniRequestOutput | None:
        """The next output of any request, None when there is none within `timeout` seconds; raises EngineDead at the end."""
        return self._outputs.take(timeout)

    async def try_get_output_async(self, timeout: float | None = 0.001) -> OmniRequestOutput | None:
        """See `try_get_output`; cancelling it loses no output."""
        return await self._outputs.take_async(timeout)

    collective_rpc = blocking(Session.collective_rpc)
    collective_rpc_async = from_any_loop(Session.collective_rpc)

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

    def new_queue(self) -> OutputQueue[OmniRequestOutput]:
        """A queue of outputs that is closed with the engine."""
        queue: OutputQueue[OmniRequestOutput] = OutputQueue()
        self._queues.add(queue)
        return queue

    def drop_queue(self, queue: OutputQueue[OmniRequestOutput]) -> None:
        """Nobody takes from it any more."""
        self._queues.discard(queue)
        queue.close(EngineDead("nobody takes these outputs any more"))

    def _close_queues(self, reason: Exception) -> None:
        for queue in tuple(self._queues):
            queue.close(reason)


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
