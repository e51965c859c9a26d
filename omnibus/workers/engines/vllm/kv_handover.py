"""The replica's side of a hand-over of KV: what `kv_connector` writes inside EngineCore is an output, and the other way round.

The output `kv` has `token_ids`, whose KV it is; `layers`, the blocks of each layer as EngineCore describes them; and `data`, the
blocks' bytes, layer by layer. It is a payload like any other: stored where the next stage reaches it, and freed with its request.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from omnibus.errors import EngineError
from omnibus.wire.request import media_parts
from omnibus.workers.engines.protocol import EngineInput, Job
from omnibus.workers.engines.vllm.arguments import VllmArguments

FORMAT_FILE = "format.json"
"""Written by EngineCore before it serves: by layer, in the order of a file, a block's tokens, bytes, type, shape and packing."""
WRITE_TIMEOUT = 60.0
"""Seconds for the KV of a finished request to be written."""
Layers = Mapping[str, Sequence[Any]]


class Handover(Protocol):
    """The way of KV from a prefill stage to a decode stage; `run` is an execution's id."""

    def saving(self, run: str) -> Mapping[str, Any]:
        """The `kv_transfer_params` of a prompt whose KV is handed over."""

    async def outputs(self, token_ids: Sequence[int], returned: Any) -> dict[str, Any]:
        """The outputs of a prefill stage; `returned` are the connector's `kv_transfer_params`. Raises EngineError."""

    async def loading(self, run: str, values: Mapping[str, Any], prompt: Sequence[int] | None) -> Mapping[str, Any]:
        """The `kv_transfer_params` of a text whose prompt was computed elsewhere. Raises EngineError for KV that does not fit."""


class KvFiles:
    """The hand-over by our own connector: a file an execution, whose content is the output `kv`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def saving(self, run: str) -> Mapping[str, Any]:
        return {"save": str(self._path(run, "save"))}

    async def outputs(self, token_ids: Sequence[int], returned: Any) -> dict[str, Any]:
        data, _ = await self._taken(returned)
        ids = list(token_ids)
        return {"token_ids": ids, "kv": {"token_ids": ids, "layers": self._layers, "data": data}}

    async def arrays(self, returned: Any, chosen: Sequence[int]) -> np.ndarray:
        """Keys and values of layers as `kv_arrays` has them; raises EngineError, as for a layer that there is not."""
        from omnibus.workers.engines.vllm.kv_arrays import keys_and_values, layer_number  # noqa: PLC0415 imports vLLM

        there = sorted(number for number in map(layer_number, self._layers) if number is not None)
        if not set(chosen) <= set(there):
            raise EngineError(f"kv_cache names the layers {list(chosen)}, and the model has {there}")
        data, tokens = await self._taken(returned)
        return await asyncio.to_thread(keys_and_values, data, self._layers, tokens, chosen)

    async def loading(self, run: str, values: Mapping[str, Any], prompt: Sequence[int] | None) -> Mapping[str, Any]:
        kv = values.get("kv")
        fault = misfit(kv, self._layers, prompt or ())
        if fault is not None:
            raise EngineError(f"the KV from the prefill stage does not fit: {fault}")
        try:
            await asyncio.to_thread(kv["data"].tofile, self._path(run, "load"))  # type: ignore[index]
        except OSError as error:
            raise EngineError(f"the KV of a request cannot be written: {error}") from error
        return {"load": str(self._path(run, "load")), "tokens": len(kv["token_ids"])}  # type: ignore[index]

    def discard(self, run: str) -> None:
        """Remove what a run left; idempotent."""
        for kind in ("save", "load"):
            self._path(run, kind).unlink(missing_ok=True)

    async def _taken(self, returned: Any) -> tuple[np.ndarray, int]:
        """The bytes of a finished run, whose file is removed, and its tokens; EngineError when they are not there in whole."""
        try:
            tokens = returned["kv_tokens"]
            async with asyncio.timeout(WRITE_TIMEOUT):
                data = await asyncio.to_thread(_taken, Path(returned["kv_path"]), stored_bytes(self._layers, tokens))
        except (OSError, ValueError, TimeoutError, TypeError, KeyError) as error:
            raise EngineError(f"the KV of a finished request was not written: {error}") from error
        return data, tokens

    def _path(self, run: str, kind: str) -> Path:
        return self._folder / f"{run}.{kind}"

    @cached_property
    def _layers(self) -> Layers:
        layers: Layers = json.loads((self._folder / FORMAT_FILE).read_text())
        return layers


class RemoteKv:
    """The hand-over by a connector that `kv_transfer_config` names: it moves the KV by itself, and we its references.

    They are what NixlConnector understands and gives; how long the KV waits in the prefill engine is the connector's own setting.
    """

    def saving(self, run: str) -> Mapping[str, Any]:  # noqa: ARG002
        return {"do_remote_decode": True, "do_remote_prefill": False}

    async def outputs(self, token_ids: Sequence[int], returned: Any) -> dict[str, Any]:
        if not returned:
            raise EngineError("the connector of the prefill stage handed no kv_transfer_params over")
        return {"token_ids": list(token_ids), "kv_transfer_params": dict(returned)}

    async def loading(self, run: str, values: Mapping[str, Any], prompt: Sequence[int] | None) -> Mapping[str, Any]:  # noqa: ARG002
        given = values.get("kv_transfer_params")
        if not given or prompt is None:
            raise EngineError("a decode stage needs the prompt's token ids and kv_transfer_params")
        return dict(given)


def handover(arguments: VllmArguments, files: KvFiles) -> Handover:
    """The hand-over that a stage's arguments ask for."""
    return files if arguments.hands_over else RemoteKv()


def with_files(job: Job) -> EngineInput:
    """The input of a decode stage: where the chat has files, the chat again, as the KV has their places and no features.

    Its prompt has to be that of the prefill stage, and nothing of it is computed.
    """
    given, messages = job.engine_input, job.stage_input.request.messages
    has_files = messages is not None and any(media_parts(messages))
    return replace(given, messages=messages) if has_files and given.messages is None else given


def engine_args(arguments: VllmArguments, folder: Path, *others: Mapping[str, Any]) -> dict[str, Any]:
    """The `kv_transfer_config` of an engine with our connector where its role needs it, and others beside it."""
    ours = {
        "kv_connector": "KvFileConnector",
        "kv_connector_module_path": "omnibus.workers.engines.vllm.kv_connector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"folder": str(folder)},
    }
    given = arguments.engine.get("kv_transfer_config")
    used = [*others, *([given] if given else []), *([ours] if arguments.moves_files else [])]
    if len(used) < 2:
        return {"kv_transfer_config": used[0]} if used else {}
    multi = {"kv_connector": "MultiConnector", "kv_role": "kv_both", "kv_connector_extra_config": {"connectors": used}}
    return {"kv_transfer_config": multi}


def stored_bytes(layers: Layers, tokens: int) -> int:
    """The size of the KV of so many tokens, which fills whole blocks."""
    return sum(-(-tokens // block_size) * nbytes for block_size, nbytes, *_ in layers.values())


def misfit(kv: Any, layers: Layers, prompt: Sequence[int]) -> str | None:
    """Why KV cannot be put into a cache of such layers for such a prompt; None when it can."""
    if not isinstance(kv, Mapping) or not {"token_ids", "layers", "data"} <= kv.keys():
        return "it is no output `kv` of a prefill stage"
    if kv["layers"].keys() != layers.keys():
        return f"it has the layers {', '.join(kv['layers'])}, and this engine {', '.join(layers)}"
    for name, block in layers.items():
        if list(kv["layers"][name]) != list(block):
            return f"a block of {name} is {_block(kv['layers'][name])}, and here {_block(block)}"
    held = list(kv["token_ids"])
    if held != list(prompt[: len(held)]):
        return "it is of another prompt"
    data, size = kv["data"], stored_bytes(layers, len(held))
    if not isinstance(data, np.ndarray) or data.nbytes != size:
        return f"{len(held)} tokens take {size} bytes, not {getattr(data, 'nbytes', 'those of another type')}"
    return None


def _block(described: Sequence[Any]) -> str:
    tokens, _, dtype, shape, isa = described
    return f"{tokens} tokens of {dtype} {list(shape)}" + (f" packed for {isa}" if isa else "")


def _taken(path: Path, size: int) -> np.ndarray:
    # flock(2) sleeps until the writer has closed the file; the writer's death ends the sleep too.
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        path.unlink()
        found = os.fstat(file.fileno()).st_size
        if found != size:
            raise ValueError(f"its file has {found} bytes and not {size}")
        return np.asarray(np.memmap(file, np.uint8, mode="r"))
