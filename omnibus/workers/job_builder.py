"""From a task to the job that an engine runs: payloads fetched, sources unpacked, parameters merged."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from omnibus.errors import ConfigError, EngineError, InvalidRequest, OmnibusError, RequestTooLarge
from omnibus.ledger.records import Ledger
from omnibus.payloads.packing import HEAVY
from omnibus.payloads.store import PayloadStore
from omnibus.pipeline.spec import NAME_PATTERN, PipelineSpec, StageSpec
from omnibus.wire import codec
from omnibus.wire.envelope import Task
from omnibus.wire.failure import describe
from omnibus.wire.payload import Payload, split_by_role
from omnibus.wire.request import Request, decode_request
from omnibus.wire.subjects import INPUT
from omnibus.workers.engines.protocol import MAIN, MOST_MEMBERS, SEGMENT_END, EngineInput, Job, Outputs, StageInput
from omnibus.workers.engines.threads import EngineLoop, EngineThreads, awaited, is_async
from omnibus.workers.object_loading import load_object

InputProcessor = Callable[[StageInput], EngineInput]
PromptExpansion = Callable[[StageInput], Mapping[str, StageInput] | None]


class JobBuilder:
    """Makes the jobs of one stage."""

    def __init__(self, spec: PipelineSpec, stage: StageSpec, store: PayloadStore, ledger: Ledger) -> None:
        """Raises ConfigError for functions that cannot be imported, and for a canary that is no request."""
        self._spec, self._stage, self._store, self._ledger = spec, stage, store, ledger
        self._process: InputProcessor | None = (
            load_object(stage.input_processor, "input_processor") if stage.input_processor else None
        )
        self._expand: PromptExpansion | None = (
            load_object(stage.prompt_expand, "prompt_expand") if stage.prompt_expand else None
        )
        self._threads, self._loop = EngineThreads(f"input-{stage.name}"), EngineLoop(f"input-{stage.name}-loop")
        self.processed = 0
        """Calls of plain functions that have ended. They run one after the other, so it moves unless one hangs."""
        self._canary = _canary_input(stage) if stage.canary is not None else None

    async def given(self, task: Task) -> StageInput:
        """Fetch the stage's input; raises PayloadLost, or a RequestError for what the request got wrong."""
        data = bytes(await self._store.get(await self._ledger.request(task.ticket)))
        request = decode_request(data) if len(data) <= HEAVY else await asyncio.to_thread(decode_request, data)
        sources: dict[str, Outputs] = {}
        companions: dict[str, Mapping[str, Outputs]] = {}
        for source, payloads in task.inputs.items():
            name, outputs = self._spec.stage(source).name, await self._fetch(payloads, task.ticket.rid)
            sources[name], by_role = split_by_role(outputs)
            if by_role:
                companions[name] = by_role
        running = task.ticket.route.stage_ids
        stages = {ref for stage_id in running for ref in (self._spec.stage_name(stage_id), str(stage_id))}
        return StageInput(rid=task.ticket.rid, request=request, sources=sources, companions=companions, stages=stages)

    async def build(self, given: StageInput, **more: Any) -> Job:
        """The job that the input processor makes, with `more` fields; raises a RequestError, EngineError when that failed.

        Where the stage expands its prompts, the processor makes the input of each member of the bundle.
        """
        if self._expand is None:
            return await self._job(given, more)
        bundle = {MAIN: given, **await self._bundle(self._expand, given)}
        jobs = {role: await self._job(replace(one, role=role), more) for role, one in bundle.items()}
        return replace(jobs.pop(MAIN), companions=jobs)

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

    async def _job(self, given: StageInput, more: Mapping[str, Any]) -> Job:
        made: Any = None
        if self._process is not None:
            made = await self._called(self._process, given)
        elif not given.flows:
            made = default_input(given)
        sampling, parts = merged_sampling(self._stage, given.request), None
        if made is None or inspect.isasyncgen(made):
            made, parts = EngineInput(), _chunk_parts(given) if made is None else self._parts(made)
        return Job(rid=given.rid, stage_input=given, engine_input=made, sampling=sampling, parts=parts, **more)

    async def _parts(self, made: AsyncGenerator[EngineInput, None]) -> AsyncGenerator[EngineInput, None]:
        """The parts that a processor yields; isolated as `_called`."""
        try:
            async with aclosing(self._loop.values(made)) as parts:
                async for part in parts:
                    yield part
        except OmnibusError:
            raise
        except Exception as error:
            raise EngineError(self._named("input_processor", describe(error))) from error

    async def _bundle(self, expand: PromptExpansion, given: StageInput) -> Mapping[str, StageInput]:
        """The members that the stage's function makes; raises RequestTooLarge when they are too many."""
        made = await self._called(expand, given) or {}
        if not isinstance(made, Mapping) or not all(map(_is_member, made, made.values())):
            raise EngineError(self._named("prompt_expand", f"return StageInputs by role, not {made!r:.200}"))
        if len(made.keys() | {MAIN}) > MOST_MEMBERS:
            many = f"the request expands to {len(made.keys() | {MAIN})} members, and {MOST_MEMBERS} may be"
            raise RequestTooLarge(self._named("prompt_expand", many), param="prompt")
        return {role: replace(one, rid=given.rid) for role, one in made.items()}

    async def _called(self, function: Callable[[StageInput], Any], given: StageInput) -> Any:
        """Isolated: whatever a function raises ends or retries this request only, and it holds up no more than its own kind."""
        try:
            made = function(given) if is_async(function) else await self._threads.run(self._counted, function, given)
            return await self._loop.run(awaited(made)) if inspect.isawaitable(made) else made
        except OmnibusError:
            raise
        except Exception as error:
            field = "input_processor" if function is self._process else "prompt_expand"
            raise EngineError(self._named(field, describe(error))) from error

    def _named(self, field: str, what: str) -> str:
        return f"stage {self._stage.name!r}: {getattr(self._stage, field)}: {what}"

    def _counted(self, function: Callable[[StageInput], Any], given: StageInput) -> Any:
        try:
            return function(given)
        finally:
            self.processed += 1  # there is one thread


def _is_member(role: object, member: object) -> bool:
    return isinstance(role, str) and NAME_PATTERN.fullmatch(role) is not None and isinstance(member, StageInput)


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
        return _input_of({name: value for outputs in stage_input.sources.values() for name, value in outputs.items()})
    request = stage_input.request
    if isinstance(request.prompt, tuple):
        return EngineInput(token_ids=request.prompt)
    if request.messages is not None:
        return EngineInput(messages=request.messages, values={"prompt": request.text()})
    return EngineInput(text=request.prompt, values={"prompt": request.prompt})


def _input_of(values: Outputs) -> EngineInput:
    return EngineInput(
        text=values.get("text"), token_ids=values.get("token_ids"), embeds=values.get("embeds"), values=values
    )


async def _chunk_parts(given: StageInput) -> AsyncGenerator[EngineInput, None]:
    """The parts of a stage without an input processor that reads a flow: each chunk is one; the ends of answers are none."""
    for name, flow in given.flows.items():
        async for chunk in flow:
            if SEGMENT_END in chunk:
                continue
            part = _input_of(chunk)
            yield replace(part, messages=chunk.get("messages")) if name == INPUT else part


def merged_sampling(stage: StageSpec, request: Request) -> dict[str, Any]:
    """The stage's defaults, overridden by what the request gives for the stage's id, and then for its name."""
    given = request.sampling_params
    return {**stage.default_sampling_params, **given.get(str(stage.stage_id), {}), **given.get(stage.name, {})}
