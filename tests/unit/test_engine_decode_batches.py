"""Parts of sounds that share a call of a decoder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from omnibus.errors import EngineDead, EngineError
from omnibus.workers.engines.transformers.decode_batches import DecodeBatches, WaitingPart
from omnibus.workers.engines.transformers.parts import Part

pytestmark = pytest.mark.unit
POISON, FATAL = 99, 98


class Doubling:
    """A decoder that doubles its frames, and cannot bear some of them."""

    def __init__(self, *, most: int = 8, most_frames: int = 1000) -> None:
        self.calls: list[int] = []
        self.batches = DecodeBatches(self.decode, most=most, most_frames=most_frames)

    def decode(self, parts: Sequence[Part]) -> list[np.ndarray]:
        self.calls.append(len(parts))
        stacked = np.stack([part.array for part in parts])
        if FATAL in stacked:
            raise EngineDead("the device failed")
        if POISON in stacked:
            raise EngineError("such a frame cannot be decoded")
        return list(2 * stacked)

    def add(self, *frames: int) -> WaitingPart:
        return self.batches.add(Part(np.array(frames), len(frames)))

    def made(self, waiting: WaitingPart) -> list[int]:
        """As the thread of an engine makes it."""
        try:
            return list(map(int, self.batches.make(waiting)))
        finally:
            self.batches.drop(waiting)


def test_parts_of_one_shape_share_a_call_and_each_has_its_own_sound() -> None:
    decoder = Doubling()
    waiting = [decoder.add(number, number + 1) for number in range(5)]
    assert [decoder.made(one) for one in waiting] == [[2 * number, 2 * number + 2] for number in range(5)]
    assert decoder.calls == [5]


def test_parts_of_other_shapes_wait_for_a_call_of_their_own() -> None:
    decoder = Doubling()
    waiting = [decoder.add(1, 2), decoder.add(3, 4, 5), decoder.add(6, 7)]
    assert [decoder.made(one) for one in waiting] == [[2, 4], [6, 8, 10], [12, 14]]
    assert decoder.calls == [2, 1]


@pytest.mark.parametrize(
    ("most", "most_frames", "calls"),
    [(1, 1000, [1, 1, 1, 1, 1]), (2, 1000, [2, 2, 1]), (8, 6, [3, 2]), (8, 1, [1] * 5)],
)
def test_a_call_has_so_many_parts_and_so_many_frames_at_most(most: int, most_frames: int, calls: list[int]) -> None:
    decoder = Doubling(most=most, most_frames=most_frames)
    for one in [decoder.add(number, number) for number in range(5)]:
        decoder.made(one)
    assert decoder.calls == calls


def test_a_dropped_part_is_made_by_nobody() -> None:
    decoder = Doubling()
    first, gone, last = decoder.add(1), decoder.add(POISON), decoder.add(3)
    decoder.batches.drop(gone)
    assert [decoder.made(first), decoder.made(last)] == [[2], [6]]
    assert decoder.calls == [2]


@pytest.mark.parametrize("place", [0, 1, 3])
def test_a_part_that_cannot_be_decoded_fails_alone(place: int) -> None:
    decoder = Doubling()
    waiting = [decoder.add(POISON if number == place else number) for number in range(4)]
    for number, one in enumerate(waiting):
        if number == place:
            with pytest.raises(EngineError, match="such a frame"):
                decoder.made(one)
        else:
            assert decoder.made(one) == [2 * number]
    assert decoder.made(decoder.add(7)) == [14]


def test_a_dead_device_is_told_at_once() -> None:
    decoder = Doubling()
    first, _ = decoder.add(1), decoder.add(FATAL)
    with pytest.raises(EngineDead):
        decoder.made(first)
    assert decoder.calls == [2]
