"""The methods of AsyncLLM, and of its adapters, that control calls may reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vllm.v1.engine.async_llm import AsyncLLM

from omnibus.errors import InvalidRequest
from omnibus.workers.engines.vllm.adapters import Adapters

RPC_METHODS = frozenset(
    {"reset_prefix_cache", "reset_mm_cache", "reset_encoder_cache", "sleep", "wake_up", "is_sleeping", "start_profile"}
    | {"stop_profile", "pause_generation", "resume_generation", "is_paused", "collective_rpc", "list_loras", "pin_lora"}
)
ADAPTER_METHODS = frozenset({"load_adapter", "set_adapters", "unload_adapter"})
"""Methods of `Adapters`."""


async def call(llm: AsyncLLM, adapters: Adapters, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Call one of these methods; raises InvalidRequest for others and for arguments they do not take."""
    known = RPC_METHODS | ADAPTER_METHODS
    if method not in known:
        raise InvalidRequest(f"vLLM has no control method {method!r}; there are {', '.join(sorted(known))}")
    # Bytes would be unpickled and called in EngineCore.
    if method == "collective_rpc" and not isinstance(kwargs.get("method", args[0] if args else None), str):
        raise InvalidRequest("collective_rpc takes the name of a worker's method first", param="args")
    if method in ("sleep", "wake_up") and not llm.model_config.enable_sleep_mode:
        raise InvalidRequest(f"{method} needs a GPU and `enable_sleep_mode: true` in the stage's engine_args")
    if method in ("start_profile", "stop_profile") and llm.vllm_config.profiler_config.profiler is None:
        raise InvalidRequest(f"{method} needs `profiler_config` in the stage's engine_args")
    try:
        answer = await getattr(adapters if method in ADAPTER_METHODS else llm, method)(*args, **kwargs)
    except TypeError as error:
        raise InvalidRequest(f"{method}: {error}") from error
    return sorted(answer) if isinstance(answer, set) else answer
