"""A diffusion pipeline under diffusers: batches requests that are alike, reports steps, stops between steps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from omnibus.errors import EngineDead, EngineError, EngineRejected, InvalidRequest, OmnibusError
from omnibus.pipeline.spec import StageSpec
from omnibus.workers.engines.diffusers.batch_request import PipelineRequest, Stopped, parse_request
from omnibus.workers.engines.diffusers.batching import Batch, Waiting, choose
from omnibus.workers.engines.diffusers.media_inputs import has_files
from omnibus.workers.engines.loaded_engine import LoadedEngine
from omnibus.workers.engines.protocol import EngineStats, Finished, Item, Job, Progress

if TYPE_CHECKING:
    from omnibus.workers.engines.diffusers.diffusion_pipeline import DiffusionModel  # noqa: F401 the class is made of it

BATCH_WINDOW_MS = 5.0
"""How long a first request waits for company, unless `batch_window_ms` says otherwise."""
CLOSE_TIMEOUT = 30.0
"""Seconds for the step in progress to end; its thread cannot be stopped in between."""


@dataclass(slots=True, eq=False)
class _Ticket:
    """One job, waiting or in a batch."""

    rid: str
    request: PipelineRequest
    arrived: float
    # Bounded by the number of steps, which the request's own check bounds.
    items: asyncio.Queue[Item | Exception] = field(default_factory=asyncio.Queue)
    done: bool = False
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it neither waits nor is in the batch under way: nothing works on it any more."""

    def end(self, last: Finished | Exception) -> None:
        """Deliver the last item, once."""
        if not self.done:
            self.done = True
            self.items.put_nowait(last)


class DiffusersEngine(LoadedEngine["DiffusionModel"]):
    """A DiffusionPipeline behind the engine protocol.

    Outputs, as its class makes them: `image`, uint8 (n, H, W, 3); `video`, uint8 (n, F, H, W, 3), with `fps`; `audio`, float32
    (channels, frames), a list of them for n above 1, with `sample_rate`.

    A batch cannot be stopped within a step, and goes on while any of its requests is wanted; the slots of the others are
    busy until then.
    """

    outputs: Mapping[str, str] = {
        "image": "image", "video": "video", "audio": "audio", "fps": "json", "sample_rate": "json",
    }  # fmt: skip

    def __init__(self, stage: StageSpec) -> None:
        super().__init__(stage)
        self._window = float(stage.engine_args.get("batch_window_ms", BATCH_WINDOW_MS)) / 1000
        self._steps = 0
        self._batches: asyncio.Task[None] | None = None
        # Bounded by the replica, which has at most `slots` jobs.
        self._waiting: list[_Ticket] = []
        self._batch: list[_Ticket] = []
        self._arrived = asyncio.Event()

    async def _warm(self) -> None:
        self._batches = asyncio.create_task(self._run_batches(), name=f"diffusers-{self._stage.name}-batches")

    async def generate(self, job: Job) -> AsyncGenerator[Item, None]:
        """Progress after each step, with a preview every `previews` steps, then Finished."""
        shape = self._loaded().shape
        parse = asyncio.to_thread(parse_request, job, shape) if has_files(job.engine_input.messages) else None
        request = parse_request(job, shape) if parse is None else await parse
        ticket = _Ticket(job.rid, request, asyncio.get_running_loop().time())
        self._waiting.append(ticket)
        self._arrived.set()
        try:
            while True:
                item = await ticket.items.get()
                if isinstance(item, Exception):
                    raise item
                yield item
                if isinstance(item, Finished):
                    return
        finally:
            self._drop(ticket)
            await ticket.left.wait()

    async def abort(self, rid: str) -> None:
        for ticket in [*self._waiting, *self._batch]:
            if ticket.rid == rid:
                ticket.end(Finished(outputs={}, finish_reason="abort"))
                self._drop(ticket)

    def stats(self) -> EngineStats:
        return EngineStats(running=sum(not ticket.done for ticket in self._batch), waiting=len(self._waiting))

    def progress(self) -> int:
        return self._steps

    async def rpc(self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """`sleep` moves the weights off the device, `wake_up` back; raises InvalidRequest for anything else."""
        if self._model is None or method not in ("sleep", "wake_up") or args or kwargs:
            raise InvalidRequest(
                f"diffusers has no control method {method!r} with these arguments; sleep and wake_up take none"
            )
        await self._threads.run(getattr(self._model, method))

    async def close(self) -> None:
        for ticket in [*self._waiting, *self._batch]:
            ticket.end(EngineDead(self._named("the engine was closed")))
        if self._batches is not None:
            self._batches.cancel()
            await asyncio.wait([self._batches], timeout=CLOSE_TIMEOUT)
        await super().close()

    def _load(self) -> None:
        # Seconds of import, off the loop.
        from omnibus.workers.engines.diffusers.diffusion_pipeline import DiffusionModel  # noqa: PLC0415

        self._model = DiffusionModel(self._stage)

    async def _run_batches(self) -> None:
        while self._cause is None:
            self._batch = await self._next_batch()
            try:
                await self._run_to_end(self._batch)
            finally:
                self._steps += 1
                for ticket in self._batch:
                    ticket.left.set()
                self._batch = []

    async def _run_to_end(self, batch: list[_Ticket]) -> None:
        """Run a batch until each of its requests has ended; of one that is refused each alone, as one may be at fault for all."""
        refusal: EngineRejected | None = None
        try:
            await self._run_batch(batch)
        except Stopped:
            return
        except EngineRejected as error:
            refusal = error
        except OmnibusError as error:
            self._fail(error, batch)
        except Exception as error:  # noqa: BLE001 the root of the task: an odd result ends its batch, not all after it
            self._fail(EngineError(self._named(f"{type(error).__name__}: {error}")), batch)
        if refusal is not None and len(batch) == 1:
            self._fail(refusal, batch)
        elif refusal is not None:
            for ticket in batch:
                if not ticket.done:
                    await self._run_to_end([ticket])

    async def _next_batch(self) -> list[_Ticket]:
        """Wait for a request, give others like it a moment to arrive, and take those that fit together."""
        while True:
            chosen = self._choice()
            batch = [self._waiting[place] for place in chosen.members]
            left = batch[0].arrived + self._window - asyncio.get_running_loop().time() if batch else None
            if left is not None and (left <= 0 or chosen.is_full):
                self._waiting = [ticket for ticket in self._waiting if ticket not in batch]
                return batch
            self._arrived.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._arrived.wait()

    def _choice(self) -> Batch:
        waiting = [
            Waiting(
                key=ticket.request.key(),
                bundle=ticket.rid,
                rows=len(ticket.request.seeds),
                pixels=ticket.request.pixels,
            )
            for ticket in self._waiting
        ]
        return choose(waiting, slots=self._stage.slots, budget=self._stage.engine_args.get("batch_pixels"))

    async def _run_batch(self, batch: list[_Ticket]) -> None:
        loop = asyncio.get_running_loop()

        def on_step(step: int, total: int, preview: Callable[[int], bytes | None]) -> bool:
            self._steps += 1
            row = 0
            for ticket in batch:
                wanted = not ticket.done and ticket.request.previews and step % ticket.request.previews == 0
                shown = preview(row) if wanted and step < total else None
                loop.call_soon_threadsafe(_report, ticket, Progress(step=step, total=total, preview=shown))
                row += len(ticket.request.seeds)
            return not all(ticket.done for ticket in batch)

        outputs = await self._threads.run(self._loaded().run, [ticket.request for ticket in batch], on_step)
        for ticket, made in zip(batch, outputs, strict=True):
            ticket.end(Finished(outputs=made))

    def _fail(self, failure: OmnibusError, batch: list[_Ticket]) -> None:
        """A batch's failure is that of its requests; a lost device is that of all."""
        if isinstance(failure, EngineDead):
            self._die(failure)
        for ticket in [*batch, *((*self._batch, *self._waiting) if self._cause else ())]:
            ticket.end(failure)

    def _drop(self, ticket: _Ticket) -> None:
        ticket.done = True
        if ticket in self._waiting:
            self._waiting.remove(ticket)
            ticket.left.set()


def _report(ticket: _Ticket, progress: Progress) -> None:
    if not ticket.done:
        ticket.items.put_nowait(progress)
