"""Qwen2.5-Omni's thinker, with the hidden states that its talker listens to."""

from __future__ import annotations

from vllm.model_executor.models.interfaces import SupportsEagle3
from vllm.model_executor.models.qwen2_5_omni_thinker import Qwen2_5OmniThinkerForConditionalGeneration


class Qwen25Thinker(Qwen2_5OmniThinkerForConditionalGeneration, SupportsEagle3):  # type: ignore[misc]  # vLLM has no types here
    """vLLM's own; its language model can keep the states of chosen layers, which it does not say."""
