"""The one change to vLLM-Omni: the last stage of a part makes the payload for the next stage, which is elsewhere."""

from __future__ import annotations

import functools
from typing import Any

from vllm_omni.engine import async_omni_engine

_NAME = "apply_omni_final_stage_metadata"


def make_payloads_of_last_stage() -> None:
    """Mark requests as going on behind the last stage: vLLM-Omni's runners make no payload where a request ends."""
    original = getattr(async_omni_engine, _NAME)

    @functools.wraps(original)
    def going_on(request: Any, final_stage_id: int, **more: Any) -> Any:
        return original(request, final_stage_id + 1, **more)

    setattr(async_omni_engine, _NAME, going_on)
