"""An LLM under vLLM's AsyncLLM: streams tokens, batches continuously, gives hidden states, takes embeddings."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from omnibus.errors import EngineDead, OmnibusError, StageStartError
from omnibus.pipeline.spec import StageSpec
from omnibus.workers.engines.protocol import EngineStats, Item, Job
from omnibus.workers.engines.threads import EngineThreads
from omnibus.workers.engines.vllm.arguments import VllmArguments, environment, sort_arguments

if TYPE_CHECKING:
    from omnibus.workers.engines.vllm.core import VllmCore

CLOSE_TIMEOUT = 20.0
"""Seconds for EngineCore to end; beyond it, it is left to die with the thread that started it."""


def create(stage: StageSpec) -> VllmEngine:
    """The engine of a stage, not yet started."""
    return VllmEngine(stage)


class VllmEngine:
    """vLLM behind the engine protocol.

    Outputs: `text` (str; not with `skip_tokenizer_init`), `token_ids` (list of int), and with `hidden_states: [layers]` in
    engine_args `hidden_states` (T, L, H) float32, T = prompt + generated tokens - 1. An aborted job has no hidden states.
    With `runner: pooling` instead: `last_hidden_state` (T, H) float32 of the prompt, after the final norm.
    """

    def __init__(self, stage: StageSpec) -> None:
        self._stage = stage
        self._arguments = sort_arguments(stage)
        self.outputs: Mapping[str, str] = _outputs(self._arguments)
        # EngineCore dies with the thread that started it (see `executor`), so one thread starts and stops it.
        self._thread = EngineThreads(f"vllm-{stage.name}")
        self._core: VllmCore | None = None

    async def start(self) -> None:
        """Load the model and wait until EngineCore serves; raises CheckpointMissing or StageStartError."""
        try:
            await self._thread.run(self._start)
            await self._alive().warm()
        except OmnibusError:
            raise
        except Exception as error:  # vLLM raises whatever its many parts raise
            raise StageStartError(f"stage {self._stage.name!r}: vLLM did not start: {error}") from error

    async def generate(self, job: Job) -> AsyncGenerator[Item, None]:
        """Stream TextDelta items, then Finished; after `abort` Finished holds what there was, with reason "abort"."""
        async with aclosing(self._alive().run(job)) as items:
            async for item in items:
                yield item

    async def abort(self, rid: str) -> None:
        if self._core is not None:
            await self._core.abort(rid)

    def stats(self) -> EngineStats:
        return self._core.stats() if self._core is not None else EngineStats()

    def progress(self) -> int:
        """Outputs of its scheduler."""
        return self._core.steps if self._core is not None else 0

    def dead(self) -> Exception | None:
        return self._died() if self._core is not None and self._core.errored else None

    async def wait_dead(self) -> Exception:
        if self.dead() is None:
            await self._alive().wait_gone()
        return self._died()

    async def rpc(self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call a method of AsyncLLM, one of `core.RPC_METHODS`; raises InvalidRequest for others."""
        return await self._alive().rpc(method, args, kwargs)

    async def close(self) -> None:
        core, self._core = self._core, None
        if core is not None:
            await core.quiesce()
            stopping = asyncio.create_task(self._thread.run(core.stop), name="vllm-stop")
            await asyncio.wait({stopping}, timeout=CLOSE_TIMEOUT)
        self._thread.close()

    def _start(self) -> None:
        for name, value in environment().items():
            os.environ.setdefault(name, value)
        # Seconds of import, off the loop, and after the environment is set.
        from omnibus.workers.engines.vllm.core import VllmCore  # noqa: PLC0415

        # Not returned: a future would keep it alive to the interpreter's end, where vLLM's destructor fails.
        self._core = VllmCore(self._stage, self._arguments)

    def _alive(self) -> VllmCore:
        if self._core is None or self._core.errored:
            raise self._died()
        return self._core

    def _died(self) -> EngineDead:
        return EngineDead(f"stage {self._stage.name!r}: vLLM's EngineCore is gone")


def _outputs(arguments: VllmArguments) -> dict[str, str]:
    if arguments.encodes:
        return {"last_hidden_state": "tensor"}
    return {
        **({} if arguments.skip_tokenizer else {"text": "text"}),
        "token_ids": "tokens",
        **({"hidden_states": "tensor"} if arguments.hidden_states else {}),
    }
