"""Frames on their way to a decoder: in parts, each with a few frames of its neighbours around it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Part:
    """Frames that are decoded together; `left` and `right` of them are its neighbours', and their sound is cut off."""

    array: np.ndarray
    frames: int
    left: int = 0
    right: int = 0

    def kept(self, samples: np.ndarray, hop: int | None) -> np.ndarray:
        """The part's own of the samples that were made of all its frames; `hop` of them a frame where it is known.

        Odd strides lose a few samples at the end: the frames lie where the hop has them.
        """
        hop = hop or round(len(samples) / self.frames)
        return samples[hop * self.left : hop * (self.frames - self.right) if self.right else None]


class Parts:
    """Collects the frames of one sound, and hands them out in parts."""

    def __init__(self, axis: int, size: int | None, context: int) -> None:
        """`axis` is that of time. A part has `size` frames of its own; None: all are one part."""
        self._axis, self._size, self._context = axis, size, context
        self._held: np.ndarray | None = None
        self._left = 0
        self.frames = 0
        """Frames that came."""

    def add(self, array: np.ndarray) -> Iterator[Part]:
        """The parts that are ready with these frames, which follow those before."""
        self.frames += array.shape[self._axis]
        self._held = array if self._held is None else np.concatenate((self._held, array), self._axis)
        while self._size is not None and self._length >= self._left + self._size + self._context:
            own = self._left + self._size
            yield Part(self._upto(own + self._context), own + self._context, self._left, self._context)
            left = min(self._context, own)
            self._held, self._left = self._held.take(range(own - left, self._length), self._axis), left

    def rest(self) -> Part | None:
        """The last part; None when all frames are in those before."""
        return Part(self._upto(self._length), self._length, self._left) if self._length > self._left else None

    @property
    def _length(self) -> int:
        return 0 if self._held is None else self._held.shape[self._axis]

    def _upto(self, end: int) -> np.ndarray:
        assert self._held is not None
        return self._held.take(range(end), self._axis)
