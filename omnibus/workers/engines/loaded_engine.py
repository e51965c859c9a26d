"""The common part of our engines: a model that a thread loads, jobs that can be aborted, and a recorded death."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Generic, TypeVar

from omnibus.errors import EngineDead, InvalidRequest, OmnibusError, StageStartError
from omnibus.pipeline.spec import StageSpec
from omnibus.workers.engines.protocol import EngineStats
from omnibus.workers.engines.threads import EngineThreads

Model = TypeVar("Model")
T = TypeVar("T")


class LoadedEngine(Generic[Model]):
    """An engine around a model. Its methods are those of the engine protocol, where an engine has none of its own."""

    def __init__(self, stage: StageSpec, threads: int = 1) -> None:
        self._stage = stage
        self._threads = EngineThreads(f"{stage.engine}-{stage.name}", threads)
        self._model: Model | None = None
        self._jobs: list[tuple[str, asyncio.Event]] = []
        self._cause: Exception | None = None
        self._died = asyncio.Event()

    async def start(self) -> None:
        """Load the model; raises CheckpointMissing or StageStartError."""
        try:
            await self._threads.run(self._load)
            await self._warm()
        except OmnibusError:
            raise
        except Exception as error:  # loaders raise whatever their many parts raise
            raise StageStartError(self._named(f"{self._stage.engine} did not start: {error}")) from error

    def _load(self) -> None:
        """Set the model; runs in a thread."""

    async def _warm(self) -> None:
        """Do what is left to do on the event loop."""

    def _loaded(self) -> Model:
        """The model; raises EngineDead when there is none, or none any more."""
        if self._model is None or self._cause is not None:
            raise self._cause or EngineDead(self._named("the model is not loaded"))
        return self._model

    @contextmanager
    def _running(self, rid: str) -> Iterator[asyncio.Event]:
        """One job, and what `abort` sets."""
        job = rid, asyncio.Event()
        self._jobs.append(job)
        try:
            yield job[1]
        finally:
            self._jobs.remove(job)

    async def abort(self, rid: str) -> None:
        for one, aborted in self._jobs:
            if one == rid:
                aborted.set()

    def stats(self) -> EngineStats:
        return EngineStats(running=len(self._jobs))

    def progress(self) -> int:
        return 0

    def dead(self) -> Exception | None:
        return self._cause

    async def wait_dead(self) -> Exception:
        await self._died.wait()
        assert self._cause is not None
        return self._cause

    def _die(self, cause: Exception) -> None:
        """It cannot serve any more; the first cause counts. Called on the event loop."""
        self._cause = self._cause or cause
        self._died.set()

    async def rpc(self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:  # noqa: ARG002
        """There are no control methods; always raises InvalidRequest."""
        raise InvalidRequest(f"the {self._stage.engine} engine has no control method {method!r}", param="method")

    async def close(self) -> None:
        for _, aborted in self._jobs:
            aborted.set()
        self._threads.close()
        self._model = None

    def _named(self, what: str) -> str:
        return f"stage {self._stage.name!r}: {what}"


@asynccontextmanager
async def unless(aborted: asyncio.Event, work: Coroutine[Any, Any, T]) -> AsyncGenerator[T | None, None]:
    """The value of some work, None when the job is aborted first. At the end nothing works on it any more."""
    working, abort = asyncio.create_task(work, name="job-part"), asyncio.create_task(aborted.wait(), name="job-abort")
    try:
        await asyncio.wait({working, abort}, return_when=asyncio.FIRST_COMPLETED)
        yield None if aborted.is_set() else working.result()
    finally:
        working.cancel()
        abort.cancel()
        await asyncio.gather(working, abort, return_exceptions=True)
