"""Starting AsyncLLM for a stage. Imports vLLM, which reads its environment at that moment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import vllm
from vllm import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.executor.abstract import Executor
from vllm.v1.metrics.loggers import StatLoggerBase

from omnibus.errors import StageStartError
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.pipeline.spec import StageSpec
from omnibus.workers.engines.checkpoints import loading, require_file, resolve_model
from omnibus.workers.engines.vllm.arguments import CPU_DEFAULTS, with_spare_slot
from omnibus.workers.engines.vllm.executor import bound
from omnibus.workers.engines.vllm.start_failure import reason_named

TRIED = ("0.32",)
"""Minors of vLLM that the tests passed on; the extra `vllm` of pyproject.toml allows these, and no others."""
CONFIG_FILES = ("config.json", "params.json")
"""Files by which vLLM recognises a model: that of transformers, or Mistral's."""
log = get_logger(__name__)


class LoadGauge(StatLoggerBase):  # type: ignore[misc]  # vLLM has no types here
    """The report of vLLM's scheduler on its last step."""

    def __init__(self) -> None:
        self.waiting = 0
        self.steps = 0

    def factory(self, *_config: Any) -> LoadGauge:
        """Make vLLM's logger."""
        return self

    def record(self, scheduler_stats: Any, *_others: Any, **_more: Any) -> None:
        self.steps += 1
        if scheduler_stats is not None:
            self.waiting = scheduler_stats.num_waiting_reqs

    def log_engine_initialized(self) -> None:
        return None


def untried(version: str) -> str | None:
    """A warning about a version of vLLM that the tests did not pass on; None for the others."""
    if ".".join(version.split(".")[:2]) in TRIED:
        return None
    return f"vLLM {version} was not tried: the tests passed on {', '.join(f'{minor}.*' for minor in TRIED)}"


def start_llm(stage: StageSpec, engine_args: Mapping[str, Any], load: LoadGauge) -> AsyncLLM:
    """Start EngineCore and wait until it serves; blocks. Raises CheckpointMissing, StageStartError, or what vLLM raises."""
    if (warning := untried(vllm.__version__)) is not None:
        log.warning(LogEvent.ENGINE_UNTRIED, stage=stage.name, reason=warning)
    model = resolve_model(stage.model, stage.revision)
    require_file(model, stage.revision, CONFIG_FILES)
    with loading(model, stage.revision), reason_named():
        config = _args(stage, {**engine_args, "model": model, "revision": stage.revision}).create_engine_config()
        return AsyncLLM(
            vllm_config=config,
            executor_class=bound(Executor.get_class(config)),
            log_stats=False,
            log_requests=False,
            stat_loggers=[load.factory],
        )


def _args(stage: StageSpec, engine_args: Mapping[str, Any]) -> AsyncEngineArgs:
    platform: Mapping[str, Any] = {}
    if current_platform.is_cpu():
        platform = CPU_DEFAULTS
        engine_args = with_spare_slot(engine_args, len(stage.engine_args.get("lora_modules", {})))
    prompts = stage.slots * (2 if stage.prompt_expand else 1)  # one companion each, as of guidance
    defaults = {
        "max_num_seqs": prompts, "disable_log_stats": True, "use_tqdm_on_load": False,
        "served_model_name": stage.name,  # which its metrics name
        **platform,
    }  # fmt: skip
    try:
        return AsyncEngineArgs(**{**defaults, **engine_args})
    except TypeError as error:
        raise StageStartError(f"stage {stage.name!r}: engine_args do not suit vLLM: {error}") from error
