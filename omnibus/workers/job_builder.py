"""From a task to the job that an engine runs: payloads fetched, sources unpacked, parameters merged."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from omnibus.errors import ConfigError, EngineError, InvalidRequest, OmnibusError
from omnibus.payloads.store import PayloadStore
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.wire import codec
from omnibus.wire.envelope import Task
from omnibus.wire.failure import describe
from omnibus.wire.payload import MSGPACK, TEXT, Payload
from omnibus.wire.request import Request, decode_request
from omnibus.workers.engines.protocol import EngineInput, Job, Outputs, StageInput
from omnibus.workers.object_loading import load_object

InputProcessor = Callable[[StageInput], EngineInput]


class JobBuilder:
    """Makes the jobs of one stage."""

    def __init__(self, spec: PipelineSpec, stage: StageSpec, store: PayloadStore) -> None:
        """Raises ConfigError for an input processor that cannot be imported, and for a canary that is no request."""
        self._spec, self._stage, self._store = spec, stage, store
        self._process: InputProcessor = (
            load_object(stage.input_processor, "input_processor") if stage.input_processor else default_input
        )
        self._canary = _canary_input(stage) if stage.canary is not None else None

    async def build(self, task: Task, attempt: int) -> Job:
        """Raises PayloadLost, a RequestError for what the request got wrong, or EngineError when the processor failed."""
        request = decode_request(await self._store.get(task.ticket.request))
        sources = {self._spec.stage(source).name: await self._fetch(given) for source, given in task.inputs.items()}
        stage_input = StageInput(rid=task.ticket.rid, request=request, sources=sources)
        return Job(
            rid=task.ticket.rid,
            stage_input=stage_input,
            engine_input=await self._engine_input(stage_input),
            sampling=merged_sampling(self._stage, request),
            attempt=attempt,
            priority=task.ticket.priority,
            trace=task.ticket.trace,
        )

    async def canary(self) -> Job:
        """The job of the stage's canary; raises what the input processor raises."""
        given = self._canary
        assert given is not None, "a stage without a canary asks none"
        engine_input, sampling = await self._engine_input(given), merged_sampling(self._stage, given.request)
        return Job(rid=given.rid, stage_input=given, engine_input=engine_input, sampling=sampling)

    async def _fetch(self, given: Mapping[str, Payload]) -> Outputs:
        payloads = await asyncio.gather(*(self._store.get(payload) for payload in given.values()))
        return {name: unpacked(data, given[name].media_type) for name, data in zip(given, payloads, strict=True)}

    async def _engine_input(self, stage_input: StageInput) -> EngineInput:
        """Isolated: whatever a processor raises ends or retries this request only."""
        try:
            made = self._process(stage_input)
            return await made if inspect.isawaitable(made) else made
        except OmnibusError:
            raise
        except Exception as error:
            what = self._stage.input_processor or "the default input processor"
            raise EngineError(f"stage {self._stage.name!r}: {what}: {describe(error)}") from error


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


def unpacked(data: bytes, media_type: str) -> Any:
    """A stage's output as its maker gave it: a packed value, a text, or bytes as they are."""
    if media_type == MSGPACK:
        return codec.unpack(data)
    if media_type == TEXT:
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"a text payload is not UTF-8: {error}") from error
    return data
