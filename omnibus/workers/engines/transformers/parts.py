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

    def __init__(
        self, axis: int, size: int | None, context: int, *, behind: int | None = None, first: int | None = None
    ) -> None:
        """`axis` is that of time. A part has `size` frames of its own; None: all are one part.

        `context` frames are on either side, or `behind` on the side of those that follow. The first part may be smaller.
        """
        self._axis, self._size, self._context = axis, size, context
        self._behind = context if behind is None else behind
        self._next = size if size is None or first is None else min(first, size)
        """Frames of the next part."""
        self._held: list[np.ndarray] = []
        """Frames that wait, joined when a part is made of them: each time that some come would copy all of them again."""
        self._length = self._left = 0
        self.frames = 0
        """Frames that came."""

    def add(self, array: np.ndarray) -> None:
        """Take frames, which follow those before."""
        count = array.shape[self._axis]
        self._held.append(array)
        self._length, self.frames = self._length + count, self.frames + count

    def ready(self) -> Iterator[Part]:
        """The parts that the frames so far make."""
        while self._next is not None and self._length >= self._left + self._next + self._behind:
            own, self._next = self._left + self._next, self._size
            yield Part(self._between(0, own + self._behind), own + self._behind, self._left, self._behind)
            left = min(self._context, own)
            self._held = [self._between(own - left, self._length)]
            self._length, self._left = self._length - own + left, left

    def rest(self) -> Part | None:
        """The last part; None when all frames are in those before."""
        return Part(self._between(0, self._length), self._length, self._left) if self._length > self._left else None

    def _between(self, start: int, end: int) -> np.ndarray:
        if len(self._held) > 1:
            self._held = [np.concatenate(self._held, self._axis)]
        return self._held[0][(slice(None),) * self._axis + (slice(start, end),)]
