"""A codec's or vocoder's decoder under transformers: codes in, sound out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from omnibus.errors import EngineDead, EngineRejected
from omnibus.workers.engines.loaded_engine import LoadedEngine
from omnibus.workers.engines.protocol import EngineStats, Finished, Item, Job

if TYPE_CHECKING:
    from omnibus.workers.engines.transformers.codec_model import Decoder


class TransformersEngine(LoadedEngine["Decoder"]):
    """A decoder behind the engine protocol. Outputs: `audio`, float32 (samples,), and `sample_rate` in Hz.

    Jobs are decoded one after the other: a clip takes milliseconds, and padding clips to one length would change their ends.
    A decoding cannot be stopped half-way; an aborted job ends at once, and its result is dropped: its slot is busy until then.
    """

    outputs: Mapping[str, str] = {"audio": "audio", "sample_rate": "json"}
    _decoded = 0

    async def generate(self, job: Job) -> AsyncGenerator[Item, None]:
        """Finished, alone."""
        decoder = self._loaded()
        if job.sampling:
            name = next(iter(job.sampling))
            raise EngineRejected(f"unknown parameter {name!r}: decoding takes none", param=name)
        checked = decoder.check(job.engine_input.values)
        with self._running(job.rid) as aborted:
            work = asyncio.create_task(self._decode(decoder, checked), name=f"decode-{job.rid}")
            abort = asyncio.create_task(aborted.wait(), name=f"abort-{job.rid}")
            try:
                await asyncio.wait({work, abort}, return_when=asyncio.FIRST_COMPLETED)
                if aborted.is_set():
                    yield Finished(outputs={}, finish_reason="abort")
                else:
                    yield Finished(outputs={"audio": work.result(), "sample_rate": decoder.sample_rate})
            except EngineDead as error:
                self._die(error)
                raise
            finally:
                work.cancel()
                abort.cancel()
                await asyncio.gather(work, abort, return_exceptions=True)

    def stats(self) -> EngineStats:
        return EngineStats(running=min(len(self._jobs), 1), waiting=max(len(self._jobs) - 1, 0))

    def progress(self) -> int:
        return self._decoded

    def _load(self) -> None:
        # Seconds of import, off the loop.
        from omnibus.workers.engines.transformers.codec_model import Decoder  # noqa: PLC0415

        self._model = Decoder(self._stage)

    async def _decode(self, decoder: Decoder, checked: np.ndarray) -> np.ndarray:
        try:
            samples: np.ndarray = await self._threads.run(decoder.decode, checked)
        finally:
            self._decoded += 1
        return samples
