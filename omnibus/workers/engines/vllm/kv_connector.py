"""A KV connector of vLLM's that writes the KV of requests to files and reads it from them; it runs inside EngineCore.

A request says in its `kv_transfer_params` what is to be done: `{"save": path}` when it is finished, or `{"load": path,
"tokens": n}` before its prompt is computed. Whole blocks move as they lie in memory, so that no layout of an attention backend
has to be known; `kv_handover` checks that both sides have the same. Every layer's move, those of hidden states too.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorMetadata, SupportsHMA
from vllm.v1.kv_cache_interface import FullAttentionSpec, RSWASpec, UniformTypeKVCacheSpecs
from vllm.v1.request import RequestStatus

from omnibus.workers.engines.vllm.kv_handover import FORMAT_FILE

_COMPLETE = (RequestStatus.FINISHED_STOPPED, RequestStatus.FINISHED_LENGTH_CAPPED)
_WRITERS = 4


@dataclass(frozen=True)
class Move:
    """The blocks of one request, and their file."""

    path: str
    blocks: tuple[list[int], ...]
    """Ids by group of layers."""
    stored: int
    """Tokens that the file is of."""
    first: int = 0
    last: int | None = None
    """Tokens that move: those before the first are in the cache already, those from the last on are computed."""


@dataclass
class Moves(KVConnectorMetadata):  # type: ignore[misc]  # vLLM has no types here
    """The moves of one step, from the scheduler to the worker."""

    begun: dict[str, str] = field(default_factory=dict)
    """Files of new requests that will be saved, by vLLM's own request id."""
    saves: dict[str, Move] = field(default_factory=dict)
    loads: list[Move] = field(default_factory=list)


@dataclass(frozen=True)
class _Layer:
    """The cache of one layer; the backend may have cut the scheduler's blocks into smaller parts."""

    cache: torch.Tensor
    group: int
    block_size: int
    parts: int
    isa: str
    """On CPU the instruction set that keys and values are packed for."""

    @property
    def nbytes(self) -> int:
        """The size of one of the scheduler's blocks."""
        size: int = self.parts * self.cache[0].numel() * self.cache.element_size()
        return size

    def described(self) -> tuple[int, int, str, list[int], str]:
        return self.block_size, self.nbytes, str(self.cache.dtype), [self.parts, *self.cache.shape[1:]], self.isa

    def blocks(self, tokens: int) -> int:
        """Blocks that hold so many tokens."""
        return -(-tokens // self.block_size)

    def places(self, move: Move) -> torch.Tensor:
        """Indices of what moves, in whole blocks of the scheduler's."""
        ids = move.blocks[self.group][move.first // self.block_size : self.blocks(move.last or move.stored)]
        return (torch.tensor(ids, dtype=torch.long)[:, None] * self.parts + torch.arange(self.parts)).flatten()


class KvFileConnector(KVConnectorBase_V1, SupportsHMA):  # type: ignore[misc]  # vLLM has no types here
    """Saves and loads the KV of requests that ask for it."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        self._groups = kv_cache_config.kv_cache_groups
        self._next = Moves()
        self._layers: list[_Layer] = []
        self._writers = ThreadPoolExecutor(_WRITERS, "kv-save")
        self._files: dict[str, tuple[int, str]] = {}
        """Descriptor and path of the file of each request that runs; it is locked until it is written."""

    # What follows runs beside the scheduler.

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        return max(_held(request) - num_computed_tokens, 0), False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if num_external_tokens:
            asked, last = request.kv_transfer_params, _held(request)
            first = last - num_external_tokens
            self._next.loads.append(Move(asked["load"], blocks.get_block_ids(), asked["tokens"], first, last))

    def build_connector_meta(self, scheduler_output: Any) -> Moves:
        moves, self._next = self._next, Moves()
        for new in scheduler_output.scheduled_new_reqs:
            extra = new.sampling_params.extra_args if new.sampling_params else None
            path = ((extra or {}).get("kv_transfer_params") or {}).get("save")
            if path is not None:
                moves.begun[new.req_id] = path
        return moves

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        return self.request_finished_all_groups(request, (block_ids,))

    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        path = (request.kv_transfer_params or {}).get("save")
        if path is None or request.status not in _COMPLETE:
            return False, None
        tokens = request.num_tokens - 1  # the last one was never fed
        self._next.saves[request.request_id] = Move(path, tuple(map(list, block_ids)), tokens)
        return True, {"kv_path": path, "kv_tokens": tokens}

    # What follows runs beside the model.

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        found: dict[str, _Layer] = {}
        for number, group in enumerate(self._groups):
            if not _keeps_every_token(group.kv_cache_spec):
                raise ValueError(f"KV of the kind {type(group.kv_cache_spec).__name__} cannot be handed over")
            size, modules = group.kv_cache_spec.block_size, self._vllm_config.compilation_config.static_forward_context
            for name in group.layer_names:
                parts, isa = size // kv_caches[name].shape[2], getattr(modules.get(name), "isa", "")
                found[name] = _Layer(kv_caches[name], number, size, parts, isa)
        self._layers = [layer for _, layer in sorted(found.items())]
        described = {name: layer.described() for name, layer in sorted(found.items())}
        folder = Path(self._kv_transfer_config.get_from_extra_config("folder", ""))
        (folder / FORMAT_FILE).write_text(json.dumps(described))

    def start_load_kv(self, forward_context: Any, **_: Any) -> None:  # noqa: ARG002
        for load in self._moves().loads:
            data, start = torch.from_file(load.path, size=Path(load.path).stat().st_size, dtype=torch.uint8), 0
            for layer in self._layers:
                places, nbytes, device = layer.places(load), layer.nbytes, layer.cache.device
                skipped = start + load.first // layer.block_size * nbytes
                part = data[skipped : skipped + len(places) // layer.parts * nbytes]
                layer.cache[places.to(device)] = (
                    part.view(layer.cache.dtype).view(-1, *layer.cache.shape[1:]).to(device)
                )
                start += layer.blocks(load.stored) * nbytes

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing is left to wait for."""

    def save_kv_layer(self, *_: Any, **__: Any) -> None:
        """Blocks are saved once their request is finished."""

    def wait_for_save(self) -> None:
        # A file is there, and locked, before the last output of its request is.
        for request, path in self._moves().begun.items():
            descriptor = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            self._files[request] = descriptor, path

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        saves = self._moves().saves
        for request, save in saves.items():
            descriptor, _ = self._files.pop(request)
            copies = [layer.cache[layer.places(save).to(layer.cache.device)].cpu() for layer in self._layers]
            self._writers.submit(_write, descriptor, copies)
        for request in finished_req_ids & self._files.keys():  # aborted
            descriptor, path = self._files.pop(request)
            os.close(descriptor)
            Path(path).unlink(missing_ok=True)
        return set(saves) or None, None

    def shutdown(self) -> None:
        self._writers.shutdown()

    def _moves(self) -> Moves:
        return self._get_connector_metadata() if self.has_connector_metadata() else Moves()


def _held(request: Any) -> int:
    """Tokens of a request that its file has the KV of, without the last: what follows that one is sampled from its logits."""
    asked = request.kv_transfer_params or {}
    return min(asked["tokens"], request.num_tokens - 1) if "load" in asked else 0


def _keeps_every_token(spec: Any) -> bool:
    """Whether a group's blocks hold all tokens of a request, each where it belongs."""
    specs = spec.kv_cache_specs.values() if isinstance(spec, UniformTypeKVCacheSpecs) else (spec,)
    return all(isinstance(one, FullAttentionSpec) and not isinstance(one, RSWASpec) for one in specs)


def _write(descriptor: int, copies: Sequence[torch.Tensor]) -> None:
    """Write and unlock; a file that is too short tells of a disk that was full."""
    with open(descriptor, "wb") as file:
        file.writelines(memoryview(copy.contiguous().view(torch.uint8).numpy().reshape(-1)) for copy in copies)
