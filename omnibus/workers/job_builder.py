"""From a task to the job that an engine runs: payloads fetched, sources unpacked, parameters merged."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from omnibus.errors import ConfigError, EngineError, InvalidRequest, OmnibusError
from omnibus.ledger.records import Ledger
from omnibus.payloads.packing import HEAVY
from omnibus.payloads.store import PayloadStore
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.wire import codec
from omnibus.wire.envelope import Task
from omnibus.wire.failure import describe
from omnibus.wire.payload import Payload
from omnibus.wire.request import Request, decode_request
from omnibus.workers.engines.protocol import EngineInput, Job, Outputs, StageInput
from omnibus.workers.engines.threads import EngineLoop, EngineThreads, awaited, is_async
from omnibus.workers.object_loading import load_object

InputProcessor = Callable[[StageInput], EngineInput]


class JobBuilder:
    """Makes the jobs of one stage."""

    def __init__(self, spec: PipelineSpec, stage: StageSpec, store: PayloadStore, ledger: Ledger) -> None:
        """Raises ConfigError for an input processor that cannot be imported, and for a canary that is no request."""
        self._spec, self._stage, self._store, self._ledger = spec, stage, store, ledger
        self._process: InputProcessor | None = (
            load_object(stage.input_processor, "input_processor") if stage.input_processor else None
        )
        self._threads, self._loop = EngineThreads(f"input-{stage.name}"), EngineLoop(f"input-{stage.name}-loop")
        self.processed = 0
        """Calls of a plain input processor that have ended. They run one after the other, so it moves unless one hangs."""
        self._canary = _canary_input(stage) if stage.canary is not None else None

    async def given(self, task: Task) -> StageInput:
        """Fetch the stage's input; raises PayloadLost, or a RequestError for what the request got wrong."""
        data = bytes(await self._store.get(await self._ledger.request(task.ticket)))
        request = decode_request(data) if len(data) <= HEAVY else await asyncio.to_thread(decode_request, data)
        sources = {
            self._spec.stage(source).name: await self._fetch(given, task.ticket.rid)
            for source, given in task.inputs.items()
        }
        return StageInput(rid=task.ticket.rid, request=request, sources=sources)

    async def build(self, given: StageInput, **more: Any) -> Job:
        """The job that the input processor makes, with `more` fields; raises a RequestError, EngineError when that failed."""
        sampling = merged_sampling(self._stage, given.request)
        return Job(
            rid=given.rid, stage_input=given, engine_input=await self._engine_input(given), sampling=sampling, **more
        )

    def canary(self) -> StageInput:
        """The input of the stage's canary."""
        assert self._canary is not None, "a stage without a canary asks none"
        return self._canary

    def close(self) -> None:
        """End the threads of the input processor."""
        self._threads.close()
        self._loop.close()

    async def _fetch(self, given: Mapping[str, Payload], rid: str) -> Outputs:
        reading = [self._store.value(payload, rid) for payload in given.values()]
        # No task for the usual one.
        values = [await reading[0]] if len(reading) == 1 else await asyncio.gather(*reading)
        return dict(zip(given, values, strict=True))

    async def _engine_input(self, stage_input: StageInput) -> EngineInput:
        """Isolated: whatever a processor raises ends or retries this request only, and it holds up no more than its own kind."""
        if self._process is None:
            return default_input(stage_input)
        try:
            return await self._processed(self._process, stage_input)
        except OmnibusError:
            raise
        except Exception as error:
            raise EngineError(
                f"stage {self._stage.name!r}: {self._stage.input_processor}: {describe(error)}"
            ) from error

    async def _processed(self, process: InputProcessor, stage_input: StageInput) -> EngineInput:
        made = (
            process(stage_input) if is_async(process) else await self._threads.run(self._counted, process, stage_input)
        )
        return await self._loop.run(awaited(made)) if inspect.isawaitable(made) else made

    def _counted(self, process: InputProcessor, stage_input: StageInput) -> EngineInput:
        try:
            return process(stage_input)
        finally:
            self.processed += 1  # there is one thread


def _canary_input(stage: StageSpec) -> StageInput:
    assert stage.canary is not None
    try:
        request = decode_request(codec.pack(stage.canary.request))
    except (InvalidRequest, TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"stage {stage.name!r}: canary.request: {error}", param="canary") from error
    return StageInput(rid="canary", request=request, sources=stage.canary.sources)


def default_input(stage_input: StageInput) -> EngineInput:
    """Make the input of a stage without an input processor.

    From the request itself: its prompt (text or token ids) or its messages. From earlier stages: every output of every
    source by its name, a later source over an earlier one; `token_ids`, `embeds` and `text` also as an LLM's input.
    """
    if stage_input.sources:
        values = {name: value for outputs in stage_input.sources.values() for name, value in outputs.items()}
        return EngineInput(
            text=values.get("text"), token_ids=values.get("token_ids"), embeds=values.get("embeds"), values=values
        )
    request = stage_input.request
    if isinstance(request.prompt, tuple):
        return EngineInput(token_ids=request.prompt)
    if request.messages is not None:
        return EngineInput(messages=request.messages, values={"prompt": request.text()})
    return EngineInput(text=request.prompt, values={"prompt": request.prompt})


def merged_sampling(stage: StageSpec, request: Request) -> dict[str, Any]:
    """The stage's defaults, overridden by what the request gives for the stage's id, and then for its name."""
    given = request.sampling_params
    return {**stage.default_sampling_params, **given.get(str(stage.stage_id), {}), **given.get(stage.name, {})}
