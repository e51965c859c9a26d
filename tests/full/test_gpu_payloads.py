"""Tensors on a GPU as payloads: copied to the host through pinned memory."""

from __future__ import annotations

import time

import numpy as np
import pytest

from omnibus.payloads.packing import packed
from omnibus.wire import codec

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: torch.cuda.is_available() is false here"),
]


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "uint8"])
async def test_tensor_on_a_gpu_arrives_as_an_array(dtype: str) -> None:
    tensor = torch.arange(1 << 20, device="cuda").remainder(97).to(getattr(torch, dtype)).reshape(1024, 1024).T
    given = await packed({"name": "n", "tensor": tensor})
    np.testing.assert_array_equal(codec.unpack(given.joined())["tensor"], tensor.cpu().numpy())


async def test_result_of_a_kernel_that_still_runs_arrives_whole() -> None:
    factor = torch.full((4096, 4096), 0.5, device="cuda")
    product = factor
    for _ in range(20):
        product = product @ factor / 1024
    given = codec.unpack((await packed(product)).joined())
    np.testing.assert_array_equal(given, product.cpu().numpy())


async def test_copy_through_pinned_memory_is_no_slower_than_through_pageable_memory() -> None:
    tensor = torch.zeros(64 << 20, dtype=torch.uint8, device="cuda")

    def seconds(copy: object) -> float:
        assert callable(copy)
        taken = []
        for _ in range(5):
            torch.cuda.synchronize()
            started = time.perf_counter()
            copy()
            taken.append(time.perf_counter() - started)
        return min(taken)

    assert seconds(lambda: codec.pack_parts(tensor)) < seconds(tensor.cpu) * 1.2
