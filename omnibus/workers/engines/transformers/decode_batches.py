"""Decodings that wait for the thread together: made in one call where their frames have one shape. No torch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np

from omnibus.errors import EngineDead, EngineError
from omnibus.workers.engines.transformers.parts import Part


class WaitingPart:
    """A part of a sound that waits to be decoded."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.samples: np.ndarray | None = None
        """Its sound, once some call has made it."""
        self.is_alone = False
        """Whether it shares no call: one that it shared has failed."""


class DecodeBatches:
    """Decodes the oldest part together with those like it that wait already; no part waits for others to come.

    Each part has a call of its own in the engine's thread, in the order in which they came. The first call makes the sounds of
    the others, too, and their calls return what is made. So a part that is dropped leaves the others as they are.
    """

    def __init__(
        self, decode: Callable[[Sequence[Part]], Sequence[np.ndarray]], *, most: int, most_frames: int
    ) -> None:
        """`most` parts share a call, of `most_frames` frames together; one part may have them all."""
        self._decode, self._most, self._most_frames = decode, most, most_frames
        self._waiting: list[WaitingPart] = []
        self._lock = threading.Lock()

    def add(self, part: Part) -> WaitingPart:
        """Have a part wait until it is made, or dropped."""
        waiting = WaitingPart(part)
        with self._lock:
            self._waiting.append(waiting)
        return waiting

    def drop(self, waiting: WaitingPart) -> None:
        """Have a part wait no more."""
        with self._lock:
            if waiting in self._waiting:
                self._waiting.remove(waiting)

    def make(self, waiting: WaitingPart) -> np.ndarray:
        """The sound of a part, for the engine's thread; raises what decoding it alone raises."""
        if waiting.samples is None:
            batch = self._batch_of(waiting)
            try:
                sounds = self._decode([one.part for one in batch])
            except EngineDead:
                raise
            except EngineError:
                if len(batch) == 1:
                    raise
                for one in batch:  # one of them is at fault, or they were too many
                    one.is_alone = True
                batch, sounds = [waiting], self._decode([waiting.part])
            for one, samples in zip(batch, sounds, strict=True):
                one.samples = samples
        assert waiting.samples is not None
        return waiting.samples

    def _batch_of(self, first: WaitingPart) -> list[WaitingPart]:
        shape, kind = first.part.array.shape, first.part.array.dtype
        most = max(1, min(self._most, self._most_frames // max(1, first.part.frames)))
        with self._lock:
            like_it = [
                one
                for one in self._waiting
                if one is not first
                and one.samples is None
                and not one.is_alone
                and (one.part.array.shape, one.part.array.dtype) == (shape, kind)
            ]
        return [first] if first.is_alone else [first, *like_it[: most - 1]]
