"""Hidden states of chosen layers as an output of the vLLM engine.

vLLM's speculative method `extract_hidden_states` keeps them in a KV cache of its own, and a KV connector writes those of a
finished request into a safetensors file, which the replica reads and deletes. Layer 0 is the embedding, layer k the residual
stream after k layers; T is prompt tokens + generated tokens - 1, as the last token is never fed back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from vllm.distributed.kv_transfer.kv_connector.v1 import example_hidden_states_connector as example
from vllm.v1.request import RequestStatus

from omnibus.errors import EngineError
from omnibus.workers.engines.vllm.cpu_kernels import correct_kernels

READ_TIMEOUT = 30.0
"""Seconds for a finished request's states to reach their file; writing takes milliseconds."""


class HiddenStatesConnector(example.ExampleHiddenStatesConnector):  # type: ignore[misc]  # vLLM has no types here
    """vLLM's example connector, made to work without CUDA and to leave no files of aborted requests."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # vLLM makes its connectors inside EngineCore, after the platform has registered its kernels.
        correct_kernels()

    def _submit_async_write(self, pending: example.PendingSave) -> None:
        if self._kv_cache.is_cuda:
            super()._submit_async_write(pending)
            return
        offsets = torch.arange(self._block_size)
        slots = (torch.tensor(pending.block_ids)[:, None] * self._block_size + offsets).flatten()
        states = example.extract_from_kv_cache(self._kv_cache, slots, pending.token_ids.shape[0]).contiguous()
        lock = self._lock_fds.pop(pending.req_id, None)
        self._write_tensors({"hidden_states": states}, _Copied(), pending.filename, lock)
        self._req_copy_events[pending.req_id] = _Copied()

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        if request.status != RequestStatus.FINISHED_ABORTED:
            return super().request_finished(request, block_ids)  # type: ignore[no-any-return]
        path = self._request_filenames.pop(request.request_id, None)
        if path is not None:
            example.cleanup_hidden_states(path)
        return False, None


class _Copied:
    """Takes the place of a CUDA event: on CPU the copy is done when it is made."""

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        return None


async def taken(path: str) -> np.ndarray:
    """Read and delete one request's states: (T, L, H) float32. Raises EngineError when they do not come."""
    try:
        async with asyncio.timeout(READ_TIMEOUT):
            return await asyncio.to_thread(_take, path)
    except (OSError, KeyError, TimeoutError) as error:
        raise EngineError(f"the hidden states of a finished request were not written: {error}") from error


def engine_args(layers: Sequence[int]) -> dict[str, Any]:
    """Arguments of AsyncEngineArgs that keep these layers' states; `connector` hands them over."""
    hf_config = {"eagle_aux_hidden_state_layer_ids": list(layers)}
    return {
        "speculative_config": {
            "method": "extract_hidden_states",
            "num_speculative_tokens": 1,
            "draft_model_config": {"hf_config": hf_config},
        },
        # A cached prefix is not computed again, and so leaves no states behind.
        "enable_prefix_caching": False,
    }


def connector(folder: Path) -> dict[str, Any]:
    """The `kv_transfer_config` that writes the states of finished requests into a folder."""
    return {
        "kv_connector": HiddenStatesConnector.__name__,
        "kv_connector_module_path": __name__,
        "kv_role": "kv_producer",
        "kv_connector_extra_config": {"shared_storage_path": str(folder)},
    }


def _take(path: str) -> np.ndarray:
    # load_hidden_states sleeps in flock(2) until the writer has closed the file; the writer's death ends the sleep too.
    tensors = example.load_hidden_states(path)
    example.cleanup_hidden_states(path)
    states: np.ndarray = tensors["hidden_states"].float().numpy()
    return states
