"""LoRA adapters of one engine: those of its stage's arguments, and those that were added while it ran."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import msgspec
from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from omnibus.errors import EngineRejected, InvalidRequest
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.wire.failure import describe
from omnibus.workers.engines.checkpoints import resolve_model
from omnibus.workers.engines.protocol import Job

log = get_logger(__name__)


class Adapters:
    """Adapters by the name that requests use. Each is loaded before the first request with it: EngineCore dies of a bad one."""

    def __init__(self, llm: AsyncLLM) -> None:
        self._llm = llm
        config = llm.vllm_config.lora_config
        # On CPU the last slot stays empty: see `arguments.with_spare_slot`.
        self._most = config.max_loras - 1 if config is not None and current_platform.is_cpu() else None
        self._requests: dict[str, LoRARequest] = {}
        self._failed: dict[str, str] = {}
        """Why an adapter that the stage should have is not there."""
        self._places: dict[str, tuple[str, bool]] = {}
        """Where each was loaded from, and whether it was added while the engine ran."""
        self._made = 0
        self._changing = asyncio.Lock()

    def of(self, job: Job) -> LoRARequest | None:
        """The adapter of a job; raises EngineRejected for one that is not here."""
        name = job.stage_input.request.lora
        # A request names one adapter; later stages without adapters have nothing to do with it, the first one must know it.
        if name is None or (not (self._requests or self._failed) and job.stage_input.sources):
            return None
        if name not in self._requests:
            known = ", ".join(self._requests) or "none"
            why = self._failed.get(name, f"there are: {known}")
            raise EngineRejected(f"no LoRA adapter {name!r} here; {why}", param="lora")
        return self._requests[name]

    async def set_adapters(self, declared: Mapping[str, str], added: Mapping[str, str]) -> None:
        """Have these and no others, by name and place; those that were added are loaded from where they are said to be.

        One that cannot be loaded is refused to those who ask for it.
        """
        for name in (self._requests.keys() | self._failed.keys()) - declared.keys() - added.keys():
            await self.unload_adapter(name)
        for name, place in {**declared, **added}.items():
            # The files at a place may be others since one was declared: what was added is loaded once more.
            if self._places.get(name) != (place, name in added):
                await self._try(name, place, is_added=name in added)

    async def _try(self, name: str, place: str, *, is_added: bool) -> None:
        try:
            await self.load_adapter(name, place, is_added=is_added)
        except InvalidRequest as error:
            await self.unload_adapter(name)  # no other one answers in its name
            self._failed[name] = error.message
            log.warning(LogEvent.ENGINE_ADAPTER_FAILED, adapter=name, error=error.message)

    async def load_adapter(self, name: str, place: str, *, is_added: bool = True) -> None:
        """Add an adapter, or put it in the place of that of its name.

        Raises InvalidRequest for one that the engine cannot load, and for one too many; then all is as it was.
        """
        async with self._changing:
            before = self._requests.get(name)
            if self._llm.vllm_config.lora_config is None:
                raise InvalidRequest("this stage takes no adapters: set `enable_lora: true` in its engine_args")
            if before is None and self._most is not None and len(self._requests) >= self._most:
                raise InvalidRequest(f"the stage holds {self._most} adapters: raise `max_loras` in its engine_args")
            self._made += 1
            number = self._made if before is None else before.lora_int_id
            try:
                # Invariant: no two have the same name for vLLM, whose prefix cache would take one's states for the other's.
                made = LoRARequest(f"{name}#{self._made}", number, await asyncio.to_thread(resolve_model, place))
                await self._llm.add_lora(msgspec.structs.replace(made, load_inplace=before is not None))
            except EngineDeadError:
                raise
            except Exception as error:  # EngineCore names no types
                raise InvalidRequest(f"the adapter cannot be loaded: {describe(error)}", param="lora_path") from error
            self._requests[name], self._places[name] = made, (place, is_added)
            self._failed.pop(name, None)

    async def unload_adapter(self, name: str) -> None:
        """Forget an adapter; idempotent. Jobs that run with it are finished."""
        async with self._changing:
            self._failed.pop(name, None)
            self._places.pop(name, None)
            if (gone := self._requests.pop(name, None)) is not None:
                await self._llm.remove_lora(gone.lora_int_id)
