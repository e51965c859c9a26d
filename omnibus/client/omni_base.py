"""The base of all façades: a session on a background thread with a loop of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Mapping
from functools import wraps
from operator import attrgetter
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from omnibus.client.embedded_pipeline import EmbeddedOptions
from omnibus.client.engine_thread import EngineThread
from omnibus.client.output_queue import OutputQueue
from omnibus.client.request_outputs import OmniRequestOutput
from omnibus.client.session import Session, open_session
from omnibus.client.single_stage import Target, pipeline_for
from omnibus.client.stage_info import StageRuntimeInfo, stage_info, supported_tasks
from omnibus.errors import EngineDead, InvalidRequest
from omnibus.observability.logging import configure_quietly
from omnibus.pipeline.files import is_path
from omnibus.pipeline.spec import PipelineSpec
from omnibus.settings import Settings

P = ParamSpec("P")
T = TypeVar("T")
STAGE_INIT_TIMEOUT = 300.0
"""Seconds that one engine may take to load, where nobody says otherwise."""


class OmniBase(EngineThread[Session]):
    """Serves a pipeline from here, or uses one that runs on a cluster.

    `model` is a pipeline file, the name of a shipped pipeline, a PipelineSpec, or the folder of a checkpoint, which is
    served as one stage with `engine_args`. With `nats` (or OMNIBUS_NATS_URL) it is the name of a deployed pipeline, or None
    for the only one; nothing is started, and `stage_init_timeout` is refused. Timeouts are seconds: of one stage's start, and
    of everything. `log_level` is for this process, unless it has configured structlog itself, and for the replicas. Everything
    is up when the constructor returns; it blocks. `shutdown` when done, or use it in a `with`.

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
        target = _target(model, engine_args, nats)
        options = EmbeddedOptions(
            state_dir=Path(state_dir) if state_dir is not None else None,
            init_timeout=init_timeout, stage_init_timeout=stage_init_timeout, log_level=log_level,
        )  # fmt: skip
        self._queues: set[OutputQueue[OmniRequestOutput]] = set()
        self._outputs = self._new_queue()
        super().__init__(
            lambda: open_session(target, settings, nats=nats, options=options, outputs=self._outputs),
            shutdown_hook=self._close_queues,
        )

    # What it is

    @property
    def engine(self) -> Self:
        """This object itself, which is its engine."""
        return self

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

    def get_stage_metadata(self, stage_id: int) -> StageRuntimeInfo:
        """Return the information on one stage; raises PipelineError for an unknown one."""
        return stage_info(self.spec.stage(stage_id))

    # What it does: a coroutine of its `session` goes through `run` or `run_async`, which raise EngineDead when it is over

    def _new_queue(self) -> OutputQueue[OmniRequestOutput]:
        """A queue of outputs that is closed with the engine, unless `_end_queue` ends it before."""
        queue = OutputQueue(attrgetter("nbytes"))
        self._queues.add(queue)
        return queue

    def _end_queue(self, queue: OutputQueue[OmniRequestOutput]) -> None:
        self._queues.discard(queue)
        queue.close(EngineDead("nobody takes these outputs any more"))

    def _close_queues(self, reason: Exception) -> None:
        """Called on the engine's thread, while others make queues and end them: the copy of a set is atomic."""
        for queue in tuple(self._queues):
            queue.close(reason)


SessionMethod = Callable[Concatenate[Session, P], Coroutine[Any, Any, T]]


def blocking(method: SessionMethod[P, T]) -> Callable[Concatenate[OmniBase, P], T]:
    """A façade's method that runs this one of its session and waits for it; raises EngineDead when the engine is not alive."""

    @wraps(method)
    def call(self: OmniBase, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.run(method(self.session, *args, **kwargs))

    return call


def from_any_loop(method: SessionMethod[P, T]) -> Callable[Concatenate[OmniBase, P], Coroutine[Any, Any, T]]:
    """The same, to be awaited on any event loop, which it does not block."""

    @wraps(method)
    async def call(self: OmniBase, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.run_async(method(self.session, *args, **kwargs))

    return call


def _target(model: Target | None, engine_args: Mapping[str, Any], nats: str | None) -> PipelineSpec | str | None:
    """The pipeline to serve; with `nats` the name of a deployed one, of a file the pipeline in it, or None: the only one."""
    if nats is None and model is None:
        raise InvalidRequest("name a pipeline or a checkpoint's folder, or a running cluster with nats=", param="model")
    if nats is not None and not engine_args and (model is None or (isinstance(model, str) and not is_path(model))):
        return model
    return pipeline_for(model or "", engine_args)
