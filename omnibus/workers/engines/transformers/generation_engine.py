"""Models of transformers that generate, step by step: speech of a text, or the text of a sound."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from omnibus.errors import EngineDead
from omnibus.pipeline.spec import StageSpec
from omnibus.workers.engines.chunk_joining import joined
from omnibus.workers.engines.loaded_engine import LoadedEngine
from omnibus.workers.engines.protocol import Chunk, EngineInput, EngineStats, Finished, Item, Job

Step = Callable[[], None]
Send = Callable[[Item], None]


class GenerationStopped(Exception):
    """Nobody waits for the job any more; carries control out of a generation between two steps."""


class GeneratingModel(Protocol):
    """A loaded model that runs one job at a time, in a thread."""

    def run(self, job: Job, step: Step, send: Send) -> Finished:
        """The last item of a job; those before it are sent. `step` is called at each step, and raises GenerationStopped.

        Raises EngineRejected for what the request got wrong, EngineError and EngineDead for what the model did.
        """
        ...


class GenerationEngine(LoadedEngine[GeneratingModel]):
    """A model behind the engine protocol. Jobs run one after the other; an aborted one ends at its next step."""

    def __init__(
        self, stage: StageSpec, outputs: Mapping[str, str], make: Callable[[StageSpec], GeneratingModel]
    ) -> None:
        """`make` loads the model, in a thread."""
        super().__init__(stage)
        self.outputs = outputs
        self._make, self._steps = make, 0

    async def generate(self, job: Job) -> AsyncGenerator[Item, None]:
        """The items that the model sends, and Finished; abort ends it at once, and its slot is busy until the model stops."""
        model, loop, items = self._loaded(), asyncio.get_running_loop(), asyncio.Queue[Item | None]()
        with self._running(job.rid) as aborted:

            def step() -> None:
                self._steps += 1
                if aborted.is_set():
                    raise GenerationStopped

            def send(item: Item) -> None:
                loop.call_soon_threadsafe(items.put_nowait, item)

            work = asyncio.create_task(self._work(model, job, step, send), name=f"generate-{job.rid}")
            abort = asyncio.create_task(aborted.wait(), name=f"abort-{job.rid}")
            for ended in (work, abort):
                ended.add_done_callback(lambda _: items.put_nowait(None))
            try:
                while (item := await items.get()) is not None:
                    yield item
                yield Finished(outputs={}, finish_reason="abort") if aborted.is_set() else await work
            except EngineDead as error:
                self._die(error)
                raise
            finally:
                aborted.set()
                work.cancel()
                abort.cancel()
                await asyncio.wait({work, abort})
                with suppress(Exception, asyncio.CancelledError):
                    work.exception()  # nobody may have asked for it

    async def _work(self, model: GeneratingModel, job: Job, step: Step, send: Send) -> Finished:
        whole = replace(job, engine_input=await _whole(job.parts), parts=None) if job.parts is not None else job
        finished: Finished = await self._threads.run(model.run, whole, step, send)
        return finished

    def stats(self) -> EngineStats:
        return EngineStats(running=min(len(self._jobs), 1), waiting=max(len(self._jobs) - 1, 0))

    def progress(self) -> int:
        return self._steps

    def _load(self) -> None:
        self._model = self._make(self._stage)


async def _whole(parts: AsyncIterator[EngineInput]) -> EngineInput:
    """The input of a stage that is read as a flow: these models need all of it before they begin."""
    given = [part async for part in parts]
    values = joined([Chunk(outputs=part.values) for part in given], {"audio": "audio"})
    texts = [part.text for part in given if part.text is not None]
    token_ids = [token for part in given for token in part.token_ids or ()]
    return EngineInput(text="".join(texts) if texts else None, token_ids=token_ids or None, values=values)
