"""An LLM under vLLM's AsyncLLM: streams tokens, batches continuously, gives hidden states, takes embeddings."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from omnibus.errors import EngineDead
from omnibus.pipeline.spec import StageSpec
from omnibus.wire.control import PromptTokens
from omnibus.workers.engines.loaded_engine import LoadedEngine
from omnibus.workers.engines.protocol import EngineStats, Item, Job
from omnibus.workers.engines.vllm.arguments import VllmArguments, environment, sort_arguments

if TYPE_CHECKING:
    from omnibus.workers.engines.vllm.core import VllmCore

CLOSE_TIMEOUT = 20.0
"""Seconds for EngineCore to end; beyond it, it is left to die with the thread that started it."""


class VllmEngine(LoadedEngine["VllmCore"]):
    """vLLM behind the engine protocol.

    Outputs: `text` (str; not with `skip_tokenizer_init`), `token_ids` (list of int), and with `hidden_states: [layers]` in
    engine_args `hidden_states` (T, L, H) float32, T = prompt + generated tokens - 1, and `prompt_token_ids`. An aborted job has
    neither.
    With `kv_cache: [layers]` their keys and values, `kv_cache` (L, 2, T, heads, width) float32.
    With `role: prefill` instead: `token_ids` of the prompt, and `kv` (or `kv_transfer_params`, see `kv_handover`).
    With `runner: pooling` instead: `last_hidden_state` (T, H) float32 of the prompt, after the final norm; where the stage
    delivers `score`, that of a pair of texts (float).
    """

    def __init__(self, stage: StageSpec) -> None:
        # EngineCore dies with the thread that started it (see `executor`), so one thread starts and stops it.
        super().__init__(stage)
        self._arguments = sort_arguments(stage)
        self.outputs: Mapping[str, str] = _outputs(self._arguments)

    async def generate(self, job: Job) -> AsyncGenerator[Item, None]:
        """Stream TextDelta items, then Finished; after `abort` Finished holds what there was, with reason "abort"."""
        async with aclosing(self._loaded().run(job)) as items:
            async for item in items:
                yield item

    async def abort(self, rid: str) -> None:
        if self._model is not None:
            await self._model.abort(rid)

    async def tokens(self, job: Job, *, special: bool | None, strings: bool) -> PromptTokens:
        return await self._loaded().tokens(job, special=special, strings=strings)

    def stats(self) -> EngineStats:
        return self._model.stats() if self._model is not None else EngineStats()

    def progress(self) -> int:
        """Outputs of its scheduler."""
        return self._model.steps if self._model is not None else 0

    def dead(self) -> Exception | None:
        if self._model is not None and self._model.errored:
            self._gone()
        return self._cause

    async def wait_dead(self) -> Exception:
        if self.dead() is None:
            await self._loaded().wait_gone()
            self._gone()
        return await super().wait_dead()

    async def rpc(self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call a method of AsyncLLM, one of `rpc_methods.RPC_METHODS`; raises InvalidRequest for others."""
        return await self._loaded().rpc(method, args, kwargs)

    async def close(self) -> None:
        core, self._model = self._model, None
        if core is not None:
            await core.quiesce()
            stopping = asyncio.create_task(self._threads.run(core.stop), name="vllm-stop")
            await asyncio.wait({stopping}, timeout=CLOSE_TIMEOUT)
        await super().close()

    def _load(self) -> None:
        for name, value in environment().items():
            os.environ.setdefault(name, value)
        # Seconds of import, off the loop, and after the environment is set.
        from omnibus.workers.engines.vllm.core import VllmCore  # noqa: PLC0415

        self._model = VllmCore(self._stage, self._arguments)

    async def _warm(self) -> None:
        await self._loaded().warm()

    def _gone(self) -> None:
        self._die(EngineDead(self._named("vLLM's EngineCore is gone")))

    def _loaded(self) -> VllmCore:
        self.dead()
        return super()._loaded()


def _outputs(arguments: VllmArguments) -> dict[str, str]:
    if arguments.scores:
        return {"score": "json"}
    if arguments.encodes:
        return {"last_hidden_state": "tensor"}
    if arguments.role == "prefill":
        return {"token_ids": "tokens", **({"kv": "json"} if arguments.hands_over else {"kv_transfer_params": "json"})}
    return {
        **({} if arguments.skip_tokenizer else {"text": "text"}),
        "token_ids": "tokens",
        **({"hidden_states": "tensor", "prompt_token_ids": "tokens"} if arguments.hidden_states else {}),
        **({"kv_cache": "tensor"} if arguments.kv_cache else {}),
    }
