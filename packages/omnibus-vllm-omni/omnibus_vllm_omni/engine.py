"""The engine `vllm_omni`: one AsyncOmni over a pipeline of vLLM-Omni, or over consecutive stages of one."""

from __future__ import annotations

import asyncio
import importlib
import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import TemplateError

from omnibus.errors import EngineDead, EngineError, EngineRejected, InvalidRequest, OmnibusError, PipelineError
from omnibus.pipeline.spec import StageSpec
from omnibus.wire.envelope import TokenUsage
from omnibus.workers.engines.checkpoints import resolve_model
from omnibus.workers.engines.loaded_engine import LoadedEngine
from omnibus.workers.engines.protocol import Finished, Item, Job, TextDelta

HEALTH_INTERVAL = 1.0
"""Seconds between two questions for the health of vLLM-Omni's processes, whose end it reports by no event."""
RPC_METHODS = frozenset({
    "collective_rpc", "is_paused", "is_sleeping", "list_loras", "pause_generation", "pin_lora", "reset_encoder_cache",
    "reset_mm_cache", "reset_prefix_cache", "resume_generation", "sleep", "start_profile", "stop_profile", "wake_up",
})  # fmt: skip
_TYPES: Mapping[str, tuple[type, str]] = {
    "pipeline": (str, "a name of vLLM-Omni's registry"),
    "stages": (list, "a list of stage ids of that pipeline"),
    "devices": (int, "a number of devices"),
    "register": (list, "a list of modules"),
    "deploy": (dict, "a mapping as in vLLM-Omni's deploy files"),
    "omni": (dict, "a mapping of arguments of AsyncOmni"),
}


def create(stage: StageSpec) -> VllmOmniEngine:
    """The engine of a stage, not yet started; raises PipelineError for arguments that it does not take."""
    for name, value in stage.engine_args.items():
        kind, meaning = _TYPES[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise PipelineError(f"must be {meaning}", field=f"engine_args.{name}")
    if "stages" in stage.engine_args and "pipeline" not in stage.engine_args:
        raise PipelineError("needs the pipeline whose stages they are", field="engine_args.stages")
    return VllmOmniEngine(stage)


class VllmOmniEngine(LoadedEngine[Any]):
    """Runs jobs side by side; vLLM-Omni batches them in its own processes."""

    def __init__(self, stage: StageSpec) -> None:
        super().__init__(stage)
        self.outputs: Mapping[str, str] = {}
        self._folder: Path | None = None
        self._numbers = itertools.count()
        self._steps = 0

    def _load(self) -> None:
        os.environ.setdefault("VLLM_OMNI_EVENT_DRIVEN_ORCH", "1")  # else its loop polls, for a tenth of a core
        from vllm_omni import AsyncOmni  # noqa: PLC0415 vLLM-Omni reads its environment at that moment
        from vllm_omni.entrypoints.omni_base import OmniBase  # noqa: PLC0415

        from omnibus_vllm_omni import courier, patches, prompts, stage_outputs, topology  # noqa: PLC0415

        args = self._stage.engine_args
        for module in args.get("register", ()):
            importlib.import_module(module)
        courier.register()
        self._check_health = OmniBase.check_health  # AsyncOmni's own is the same as a coroutine
        self._folder = Path(tempfile.mkdtemp(prefix="omnibus-omni-"))  # a short path: it holds a socket
        self.outputs = stage_outputs.KINDS
        self._mailbox = courier.Mailbox(self._folder)
        self._part = None
        given = dict(args.get("omni", {}))
        if "pipeline" in args:
            self._part = topology.make_part(
                args["pipeline"], args.get("stages"), args.get("deploy"), devices=args.get("devices", 1),
                folder=self._folder, address=self._mailbox.address,
            )  # fmt: skip
            given["deploy_config"] = str(self._part.deploy)
            if self._part.goes_on:
                patches.make_payloads_of_last_stage()
        self._model = AsyncOmni(model=resolve_model(self._stage.model, self._stage.revision), **given)
        self._prompts = prompts.Prompts(self._stage, self._model, self._part)

    async def _warm(self) -> None:
        await self._mailbox.open()

    async def generate(self, job: Job) -> AsyncGenerator[Item, None]:
        self._loaded()
        request_id = f"{job.rid}.{next(self._numbers)}."
        with self._running(job.rid) as aborted:
            self._mailbox.expect(request_id)
            try:
                async with aclosing(self._run(job, request_id, aborted)) as items:
                    async for item in items:
                        self._steps += 1
                        yield item
            finally:
                self._mailbox.forget(request_id)

    async def _run(self, job: Job, request_id: str, aborted: asyncio.Event) -> AsyncGenerator[Item, None]:
        from vllm.exceptions import VLLMClientError  # noqa: PLC0415

        from omnibus_vllm_omni.stage_outputs import Gathered  # noqa: PLC0415

        gathered, stopping = Gathered(), asyncio.create_task(self._stop(request_id, aborted), name="omni-abort")
        try:
            prompt, parameters = await self._prompts.of(job)
            # AsyncOmni's own generator aborts the request when it is closed.
            generated = self._model.generate(prompt, request_id=request_id, sampling_params_list=parameters)
            async with aclosing(generated) as outputs:
                async for output in outputs:
                    self._raise_failure(output)
                    for text, tokens in gathered.add(output):
                        yield TextDelta(text=text, token_ids=tokens)
        except OmnibusError:
            raise
        except (VLLMClientError, ValueError, TemplateError) as error:  # as vLLM refuses a request
            raise self.dead() or EngineRejected(str(error)) from error
        except Exception as error:
            raise self.dead() or EngineError(self._named(f"{type(error).__name__}: {error}")) from error
        finally:
            stopping.cancel()
            await asyncio.gather(stopping, return_exceptions=True)
        reason = "abort" if aborted.is_set() else gathered.finish_reason
        values = gathered.values()
        if reason != "abort" and self._part is not None and self._part.hands_over:
            values["payload"] = np.frombuffer(await self._mailbox.take(request_id), np.uint8)
        usage = TokenUsage(len(gathered.prompt_tokens), len(gathered.tokens))
        yield Finished(outputs=values, finish_reason=reason, usage=usage)

    async def _stop(self, request_id: str, aborted: asyncio.Event) -> None:
        await aborted.wait()
        await self._model.abort(request_id)

    def _raise_failure(self, output: Any) -> None:
        if output.error:
            if output.error_status_code is not None and 400 <= output.error_status_code < 500:
                raise EngineRejected(output.error)
            raise self.dead() or EngineError(self._named(output.error))

    def progress(self) -> int:
        return self._steps

    def dead(self) -> Exception | None:
        if self._cause is None and self._model is not None:
            try:
                self._check_health(self._model)
            except Exception as error:  # noqa: BLE001 whatever it says of a stage that has ended
                self._die(EngineDead(self._named(str(error))))
        return self._cause

    async def wait_dead(self) -> Exception:
        while (cause := self.dead()) is None:  # noqa: ASYNC110 vLLM-Omni reports it by no event
            await asyncio.sleep(HEALTH_INTERVAL)
        return cause

    async def rpc(self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if method not in RPC_METHODS:
            known = ", ".join(sorted(RPC_METHODS))
            raise InvalidRequest(f"vLLM-Omni has no control method {method!r}; there are {known}", param="method")
        return await getattr(self._loaded(), method)(*args, **kwargs)

    async def close(self) -> None:
        model = self._model
        if model is not None:
            await self._mailbox.close()
            await self._threads.run(model.shutdown)
        await super().close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
