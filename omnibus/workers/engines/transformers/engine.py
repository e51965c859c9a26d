"""A codec's or vocoder's decoder under transformers: codes in, sound out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING

import numpy as np

from omnibus.errors import EngineDead, EngineRejected
from omnibus.workers.engines.loaded_engine import LoadedEngine, unless
from omnibus.workers.engines.protocol import Chunk, EngineInput, EngineStats, Finished, Item, Job, Outputs

if TYPE_CHECKING:
    from omnibus.workers.engines.transformers.codec_model import Decoder
    from omnibus.workers.engines.transformers.parts import Part, Parts


class TransformersEngine(LoadedEngine["Decoder"]):
    """A decoder behind the engine protocol. Outputs: `audio`, float32 (samples,), and `sample_rate` in Hz.

    Decodings run one after the other; with `max_batch`, those that wait and have as many frames share a call. Padding clips to
    one length would change their ends. A decoding cannot be stopped half-way; an aborted job ends at once, and its result is
    dropped: its slot is busy until then.
    """

    outputs: Mapping[str, str] = {"audio": "audio", "sample_rate": "json"}
    _decoded = 0

    async def generate(self, job: Job) -> AsyncGenerator[Item, None]:
        """A Chunk for each part of a sound that comes or leaves in pieces, and Finished with the whole."""
        decoder = self._loaded()
        if job.sampling:
            name = next(iter(job.sampling))
            raise EngineRejected(f"unknown parameter {name!r}: decoding takes none", param=name)
        streams, pieces = job.parts is not None or job.stage_input.request.stream, list[np.ndarray]()
        with self._running(job.rid) as aborted:
            async with aclosing(self._pieces(decoder, job, decoder.parts(streams=streams), aborted)) as made:
                async for piece in made:
                    if piece is None:
                        yield Finished(outputs={}, finish_reason="abort")
                        return
                    pieces.append(piece)
                    if streams:
                        yield Chunk(outputs=_outputs(decoder, piece))
        yield Finished(outputs=_outputs(decoder, np.concatenate(pieces)))

    def stats(self) -> EngineStats:
        most = self._model.max_batch if self._model is not None else 1
        return EngineStats(running=min(len(self._jobs), most), waiting=max(len(self._jobs) - most, 0))

    def progress(self) -> int:
        return self._decoded

    def _load(self) -> None:
        # Seconds of import, off the loop.
        from omnibus.workers.engines.transformers.codec_model import Decoder  # noqa: PLC0415

        self._model = Decoder(self._stage)

    async def _pieces(
        self, decoder: Decoder, job: Job, parts: Parts, aborted: asyncio.Event
    ) -> AsyncGenerator[np.ndarray | None, None]:
        """The sound of each part; None at last when the job is aborted, while a decoding may still run."""
        async with aclosing(_decodable(decoder, job, parts)) as ready:
            while True:
                async with unless(aborted, self._next(decoder, ready)) as piece:
                    if piece is None and not aborted.is_set():
                        return
                    yield piece

    async def _next(self, decoder: Decoder, ready: AsyncIterator[Part]) -> np.ndarray | None:
        part = await anext(ready, None)
        return await self._decode(decoder, part) if part is not None else None

    async def _decode(self, decoder: Decoder, part: Part) -> np.ndarray:
        waiting = decoder.batches.add(part)
        try:
            samples: np.ndarray = await self._threads.run(decoder.batches.make, waiting)
        except EngineDead as error:
            self._die(error)
            raise
        finally:
            decoder.batches.drop(waiting)
            self._decoded += 1
        return samples


def _outputs(decoder: Decoder, samples: np.ndarray) -> Outputs:
    return {"audio": samples, "sample_rate": decoder.sample_rate}


async def _decodable(decoder: Decoder, job: Job, parts: Parts) -> AsyncGenerator[Part, None]:
    """The parts of a job as soon as they can be decoded."""
    async for given in job.parts or _alone(job.engine_input):
        parts.add(decoder.check(given.values))
        if parts.frames:
            decoder.check_length(parts.frames)
        for part in parts.ready():
            yield part
    decoder.check_length(parts.frames)
    if (rest := parts.rest()) is not None:
        yield rest


async def _alone(whole: EngineInput) -> AsyncGenerator[EngineInput, None]:
    yield whole
