"""A plugin that vLLM loads in each of its processes: classes of models that can do more than vLLM's own, and start failures."""

from __future__ import annotations

_THINKER = "omnibus.workers.engines.vllm.qwen25_omni:Qwen25Thinker"


def register() -> None:
    """Have Qwen2.5-Omni's thinker hand out hidden states, whose class is imported only where it is served."""
    from vllm import ModelRegistry  # noqa: PLC0415 vLLM has set itself up when it calls this

    from omnibus.workers.engines.vllm.start_failure import note_reason  # noqa: PLC0415

    note_reason()
    for architecture in ("Qwen2_5OmniModel", "Qwen2_5OmniForConditionalGeneration"):
        ModelRegistry.register_model(architecture, _THINKER)
