"""A kernel that vLLM's build for CPU gets wrong, put right through vLLM's own registry of kernels.

Without Triton, vLLM 0.32 expands a batch's temperatures, top_p and top_k to tokens in a converted copy and drops the result
where they are not int64: whatever lay in memory is used instead. Speculative decoding, and with it the extraction of hidden
states, then samples from a wrong distribution and ignores seeds; only greedy requests come out right.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.platforms import current_platform
from vllm.triton_utils import HAS_TRITON
from vllm.triton_utils.dispatcher import register_kernels

EXPAND_KERNEL = "vllm.v1.sample.rejection_sampler.expand_kernel"


def correct_kernels() -> None:
    """Register the right kernel in this process, where the wrong one would be used; idempotent."""
    if current_platform.is_cpu() and not HAS_TRITON:
        register_kernels({EXPAND_KERNEL: expand})


def expand(
    output: torch.Tensor,
    values: torch.Tensor,
    cumulative: torch.Tensor,
    replace_from: int,
    replace_to: int,
    *_: Any,
    **__: Any,
) -> None:
    """Repeat `values` (batch) into `output` (tokens) as often as `cumulative` token counts say, replacing one value."""
    counts = torch.diff(cumulative, prepend=cumulative.new_zeros(1))
    replaced = torch.where(values == replace_from, replace_to, values)
    output.copy_(torch.repeat_interleave(replaced, counts))
