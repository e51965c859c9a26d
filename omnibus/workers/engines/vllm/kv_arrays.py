"""Keys and values of chosen layers as arrays, read out of the blocks that an attention backend keeps them in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from vllm._custom_ops import cpu_attn_reshape_and_cache

_NUMBER = re.compile(r"\.(\d+)\.")
_DIGIT = 128
"""Numbers below it are exact in every type of a cache."""


def layer_number(name: str) -> int | None:
    """The place of an attention layer in its model, by its name in vLLM; None for caches that are none."""
    found = _NUMBER.search(name)
    return int(found.group(1)) if found else None


def keys_and_values(
    data: np.ndarray, layers: Mapping[str, Sequence[Any]], tokens: int, chosen: Sequence[int]
) -> np.ndarray:
    """Return float32 (layers, 2, T, heads, width) of the chosen layers, in their order: keys first, after the rotation."""
    found, start = {}, 0
    for name, (block_size, nbytes, dtype, shape, isa) in layers.items():
        end = start - (-tokens // block_size) * nbytes
        if layer_number(name) in chosen:
            blocks = torch.from_numpy(np.array(data[start:end])).view(getattr(torch, dtype.removeprefix("torch.")))
            found[layer_number(name)] = _read_out(blocks.view(-1, *shape[1:]), isa)[:, :tokens]
        start = end
    return np.stack([found[number].float().numpy() for number in chosen])


def _read_out(blocks: torch.Tensor, isa: str) -> torch.Tensor:
    """(blocks, heads, block, 2 × width) → (2, tokens, heads, width)."""
    count, heads, size, both = blocks.shape
    halves = blocks.split(
        both // 2, dim=-1
    )  # keys and values of a token side by side, as every backend for GPUs has them
    if isa:
        flat, order = blocks.reshape(count, heads, 2, -1), _order(isa, blocks.dtype, size, both // 2)
        halves = tuple(flat[:, :, half][..., order[half]].view(count, heads, size, -1) for half in (0, 1))
    return torch.stack(halves).transpose(2, 3).reshape(2, count * size, heads, both // 2)


@cache
def _order(isa: str, dtype: torch.dtype, size: int, width: int) -> torch.Tensor:
    """Where vLLM's kernels for CPU put what: (2, block × width), the place of each value of the keys and of the values.

    Each instruction set has a packing of its own, so the kernel that writes it is asked: it stores numbers, digit by digit.
    """
    numbers = torch.arange(size * width)
    written = torch.zeros(2, size * width, dtype=torch.long)
    for digits, worth in ((numbers % _DIGIT, 1), (numbers // _DIGIT, _DIGIT)):
        given = digits.to(dtype).view(size, 1, width)
        block = torch.zeros(1, 1, 2 * size, width, dtype=dtype)
        keys, values = block.chunk(2, dim=2)
        cpu_attn_reshape_and_cache(given, given, keys, values, torch.arange(size), isa)
        written += block.view(2, -1).long() * worth
    return written.argsort(dim=1)
