"""Stages of `python` engines that hand a large array over."""

from __future__ import annotations

from typing import Any

import numpy as np

from omnibus.workers.engines.protocol import StageInput


def make(stage_input: StageInput) -> dict[str, Any]:
    """An array of so many bytes as the prompt says, and its sum."""
    nbytes = int(stage_input.request.text())
    array = np.arange(nbytes // 4, dtype=np.uint32)
    return {"tensor": array, "total": int(array.sum(dtype=np.uint64))}


def check(stage_input: StageInput) -> str:
    """Tell whether the array arrived, and the place of its first byte in units of 64."""
    (given,) = stage_input.sources.values()
    same = int(given["tensor"].sum(dtype=np.uint64)) == given["total"]
    return f"{'the same' if same else 'another'} {given['tensor'].ctypes.data % 64}"
