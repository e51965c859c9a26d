"""Sampling parameters of a request to an LLM stage: names, meanings and types are those of vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FIELDS: Mapping[str, Any] = {
    "max_tokens": int | None,
    "min_tokens": int,
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "repetition_penalty": float,
    "seed": int | None,
    "stop": str | list[str] | None,
    "stop_token_ids": list[int] | None,
    "bad_words": list[str] | None,
    "allowed_token_ids": list[int] | None,
    "logit_bias": dict[int, float] | None,
    "ignore_eos": bool,
    "skip_special_tokens": bool,
    "spaces_between_special_tokens": bool,
    "include_stop_str_in_output": bool,
    "extra_args": dict[str, Any] | None,
    "n": int,
    "logprobs": int | None,
    "prompt_logprobs": int | None,
    "structured_outputs": dict[str, Any] | None,
    "echo": bool,
}
"""Every parameter that a request may set, and its type. `echo`: the text begins with the prompt's."""

OF_TOKENS = frozenset({
    "min_tokens", "stop_token_ids", "bad_words", "allowed_token_ids", "logit_bias", "ignore_eos", "skip_special_tokens",
    "spaces_between_special_tokens", "include_stop_str_in_output", "n", "logprobs", "prompt_logprobs", "structured_outputs",
    "echo", "extra_args",
})  # fmt: skip
"""Those that only a language model's own sampler and tokenizer can follow."""
