"""A codec's or vocoder's decoder under transformers: codes in, sound out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from omnibus.errors import EngineDead, EngineRejected, InvalidRequest, OmnibusError, StageStartError
from omnibus.pipeline.spec import StageSpec
from omnibus.workers.engines.engine_death import EngineDeath
from omnibus.workers.engines.protocol import EngineStats, Finished, Item, Job
from omnibus.workers.engines.threads import EngineThreads

if TYPE_CHECKING:
    from omnibus.workers.engines.transformers.codec_model import Decoder


def create(stage: StageSpec) -> TransformersEngine:
    """The engine of a stage, not yet started."""
    return TransformersEngine(stage)


@dataclass(slots=True, eq=False)
class _Run:
    """One job: waiting for the thread, or in it."""

    rid: str
    work: asyncio.Task[np.ndarray]
    aborted: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def abort(self) -> None:
        if not self.aborted.done():
            self.aborted.set_result(None)


class TransformersEngine:
    """A decoder behind the engine protocol. Outputs: `audio`, float32 (samples,), and `sample_rate` in Hz.

    Jobs are decoded one after the other: a clip takes milliseconds, and padding clips to one length would change their ends.
    A decoding cannot be stopped half-way; an aborted job ends at once, and its result is dropped: its slot is busy until then.
    """

    def __init__(self, stage: StageSpec) -> None:
        self.outputs: Mapping[str, str] = {"audio": "audio", "sample_rate": "json"}
        self._stage = stage
        self._thread = EngineThreads(f"transformers-{stage.name}")
        self._decoded = 0
        self._decoder: Decoder | None = None
        self._runs: list[_Run] = []
        self._death = EngineDeath()

    async def start(self) -> None:
        """Load the model; raises CheckpointMissing or StageStartError."""
        try:
            self._decoder = await self._thread.run(self._load)
        except OmnibusError:
            raise
        except Exception as error:  # loaders raise whatever their many parts raise
            raise StageStartError(f"stage {self._stage.name!r}: transformers did not start: {error}") from error

    async def generate(self, job: Job) -> AsyncGenerator[Item, None]:
        """Finished, alone."""
        decoder = self._decoder
        if decoder is None or self._death.cause is not None:
            raise self._death.cause or EngineDead(f"stage {self._stage.name!r}: the decoder is not running")
        if job.sampling:
            name = next(iter(job.sampling))
            raise EngineRejected(f"unknown parameter {name!r}: decoding takes none", param=name)
        checked = decoder.check(job.engine_input.values)
        run = _Run(job.rid, asyncio.create_task(self._decode(decoder, checked), name=f"decode-{job.rid}"))
        self._runs.append(run)
        try:
            either: set[asyncio.Future[Any]] = {run.work, run.aborted}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if run.aborted.done():
                yield Finished(outputs={}, finish_reason="abort")
            else:
                yield Finished(outputs={"audio": run.work.result(), "sample_rate": decoder.sample_rate})
        except EngineDead as error:
            self._death.record(error)
            raise
        finally:
            run.work.cancel()
            await asyncio.gather(run.work, return_exceptions=True)
            self._runs.remove(run)

    async def abort(self, rid: str) -> None:
        for run in self._runs:
            if run.rid == rid:
                run.abort()

    def stats(self) -> EngineStats:
        jobs = len(self._runs)
        return EngineStats(running=min(jobs, 1), waiting=max(jobs - 1, 0))

    def progress(self) -> int:
        return self._decoded

    def dead(self) -> Exception | None:
        return self._death.cause

    async def wait_dead(self) -> Exception:
        return await self._death.wait()

    async def rpc(self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:  # noqa: ARG002
        """There are no control methods; always raises InvalidRequest."""
        raise InvalidRequest(f"the transformers engine has no control method {method!r}")

    async def close(self) -> None:
        for run in self._runs:
            run.abort()
        self._thread.close()
        self._decoder = None

    def _load(self) -> Decoder:
        # Seconds of import, off the loop.
        from omnibus.workers.engines.transformers.codec_model import Decoder  # noqa: PLC0415

        return Decoder(self._stage)

    async def _decode(self, decoder: Decoder, checked: np.ndarray) -> np.ndarray:
        try:
            samples: np.ndarray = await self._thread.run(decoder.decode, checked)
        finally:
            self._decoded += 1
        return samples
