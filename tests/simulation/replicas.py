"""Replicas: the product's `Replica` with an engine that says what it was given, and a registry without the noise."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from msgspec.structs import replace

from omnibus.errors import EngineError
from omnibus.pipeline.prefill_decode import PREFILL
from omnibus.pipeline.spec import StageSpec
from omnibus.registry.presence.replica_record import ReplicaRecord, ReplicaStatus
from omnibus.workers.engines.protocol import (
    EngineStats,
    Finished,
    Item,
    Job,
    Outputs,
    SegmentEnd,
    StageInput,
    TextDelta,
)

if TYPE_CHECKING:
    from tests.simulation.loop import Process
    from tests.simulation.world import World


class SimEngine:
    """Its text names the stage and all that it was given: an answer shows how it came about."""

    def __init__(self, world: World, process: Process, stage: StageSpec) -> None:
        self._is_prefill = is_prefill(stage)
        self.outputs: Mapping[str, str] = (
            {"token_ids": "tokens", "kv": "json"} if self._is_prefill else {"text": "text"}
        )
        self._world, self._process, self._stage = world, process, stage
        self._flavours: dict[int, str] = {}
        self._jobs: list[tuple[str, asyncio.Event]] = []

    async def generate(self, job: Job) -> AsyncIterator[Item]:
        self._world.checker.ran(self._stage, job, self._process.name)
        self._world.trace(self._process.name, f"runs {job.rid}, attempt {job.attempt}")
        running = job.rid, asyncio.Event()
        self._jobs.append(running)
        try:
            async for item in self._made(job, running[1]):
                yield item
        finally:
            self._jobs.remove(running)

    async def _made(self, job: Job, aborted: asyncio.Event) -> AsyncIterator[Item]:
        whole, segments = "", list[int]()
        async for text in self._spoken(job):
            await self._think()
            if aborted.is_set():
                self._world.trace(self._process.name, f"ends {job.rid}, attempt {job.attempt}: aborted")
                yield self._finished(job, whole, finish_reason="abort")
                return
            whole += text
            if not self._is_prefill:
                yield _delta(text)
            if "input" in job.stage_input.flows and not text.endswith("("):
                segments.append(len(whole))
                yield SegmentEnd()
        if job.rid in self._world.poisonous:
            self._world.kill(self._process, "poisoned")
        if self._world.faults.chance(self._world.faults.engine_errors):
            raise EngineError("out of luck")
        if self._world.faults.chance(self._world.faults.stalls):
            self._world.trace(self._process.name, f"stalls on {job.rid}")
            await self._stall()
        await self._think()
        end = ")" + self._flavours.pop(id(job), "")
        if not self._is_prefill:
            yield _delta(end)
        yield self._finished(job, whole + end, segments=tuple(segments))

    def _finished(self, job: Job, text: str, **more: Any) -> Finished:
        if self._is_prefill:
            ids = list(_delta(text).token_ids)
            return Finished(outputs={"token_ids": ids, "kv": {"token_ids": ids}}, **more)
        made_by = {"by": f"{self._process.name}, attempt {job.attempt}"} if self._stage.prompt_expand else {}
        return Finished(outputs={"text": text, **made_by}, **more)

    async def _spoken(self, job: Job) -> AsyncIterator[str]:
        """All but the end of its text, piece by piece as it reads. Its flavour is at both ends, so that no two are mixed."""
        flavour = self._flavours[id(job)] = self._world.flavour()
        yield f"{self._stage.stage_id}{flavour}("
        for flow in job.stage_input.flows.values():
            async for chunk in flow:
                yield str(chunk["text"])
        if not job.stage_input.flows:
            given = inputs_of(job)
            yield given[: len(given) // 2]
            yield given[len(given) // 2 :]

    async def abort(self, rid: str) -> None:
        """All that it has of a request ends behind its next piece."""
        for running, aborted in self._jobs:
            if running == rid:
                aborted.set()

    def stats(self) -> EngineStats:
        return EngineStats()

    def progress(self) -> int:
        return 0

    def dead(self) -> Exception | None:
        return None

    async def wait_dead(self) -> Exception:
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return] # it dies with its process

    async def rpc(self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        raise NotImplementedError(method)

    async def start(self) -> None:
        return

    async def close(self) -> None:
        return

    async def _stall(self) -> None:
        """Block as a thread that never comes back: a cancellation takes effect when the world ends, and not before."""
        try:
            await asyncio.wait({self._world.over})
        finally:
            await asyncio.wait({self._world.over})

    async def _think(self) -> None:
        await asyncio.sleep(self._world.rng.choice((0.001, 0.01, 0.5, 2.0)))


def _delta(text: str) -> TextDelta:
    return TextDelta(text=text, token_ids=tuple(map(ord, text)))


def inputs_of(job: Job) -> str:
    """The texts that a job was given: those of its sources, or the prompt."""
    sources = job.stage_input.sources
    return ",".join(_text_of(sources[name]) for name in sorted(sources)) or job.stage_input.request.text()


def _text_of(made: Outputs) -> str:
    return str(made["text"]) if "text" in made else "".join(map(chr, made["token_ids"]))


def is_prefill(stage: StageSpec) -> bool:
    return stage.engine_args.get("role") == PREFILL


def beside(stage_input: StageInput) -> dict[str, StageInput]:
    """The opposite of a request, which runs beside it."""
    request = replace(stage_input.request, prompt=f"not {stage_input.request.text()}", messages=None)
    return {"opposite": dataclasses.replace(stage_input, request=request)}


class InlineThreads:
    """Takes the place of `EngineThreads` before a prompt is expanded: there is one thread."""

    def __init__(self, _name: str) -> None: ...

    async def run(self, call: Callable[..., Any], *args: Any) -> Any:
        return call(*args)

    def close(self) -> None: ...


class QuietRegistration:
    """Takes the place of `registry.presence.heartbeat.Registration` where nobody judges or directs: an id, and no beats."""

    def __init__(
        self, bucket: Any, record: ReplicaRecord, *, on_registered: Callable[[str], Awaitable[None]], **_: Any
    ) -> None:
        self.record = replace(record, replica=bucket._connection.name)
        self._on_registered = on_registered

    async def __aenter__(self) -> Self:
        await self._on_registered(self.record.replica)
        return self

    async def __aexit__(self, *_: object) -> None:
        return

    async def set_status(self, status: ReplicaStatus, _reason: str = "") -> None:
        self.record = replace(self.record, status=status)

    def hurry(self) -> None:
        return


async def start_at_once(engine: SimEngine, *_: object, **__: object) -> None:
    """Takes the place of `start_engine`: there are no devices to wait for."""
    await engine.start()
