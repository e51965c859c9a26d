"""Frames on their way to a decoder, in parts with a few frames of their neighbours."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from omnibus.workers.engines.transformers.parts import Part, Parts

pytestmark = pytest.mark.unit
FRAMES = np.arange(2 * 103).reshape(2, 103)


def parts_of(parts: Parts, arrays: list[np.ndarray]) -> Iterator[Part]:
    for array in arrays:
        parts.add(array)
        yield from parts.ready()
    if (rest := parts.rest()) is not None:
        yield rest


@pytest.mark.parametrize("steps", [1, 7, 103])
@pytest.mark.parametrize(("size", "context"), [(10, 0), (10, 3), (2, 5), (None, 0), (200, 1)])
@pytest.mark.parametrize("axis", [0, 1])
def test_parts_have_every_frame_once_with_its_neighbours_around(
    axis: int, size: int | None, context: int, steps: int
) -> None:
    whole = FRAMES if axis == 1 else FRAMES.T
    starts = range(0, 103, steps)
    arrays = [whole[(slice(None),) * axis + (slice(start, start + steps),)] for start in starts]
    made, begin = list(parts_of(Parts(axis, size, context), arrays)), 0
    for part in made:
        array = np.moveaxis(part.array, axis, 0)
        assert len(array) == part.frames
        np.testing.assert_array_equal(array, np.moveaxis(whole, axis, 0)[begin - part.left :][: part.frames])
        begin += part.frames - part.left - part.right
    assert begin == 103


@pytest.mark.parametrize(("first", "behind"), [(3, 2), (3, 0), (20, 2), (10, 0)])
def test_first_part_may_be_smaller_and_nothing_is_lost(first: int, behind: int) -> None:
    made = list(
        parts_of(Parts(0, 10, 2, behind=behind, first=first), [FRAMES.T[start : start + 1] for start in range(103)])
    )
    own = [part.frames - part.left - part.right for part in made]
    assert own[:2] == [min(first, 10), 10]
    assert sum(own) == 103
    assert {part.right for part in made[:-1]} == {behind}


@pytest.mark.parametrize("size", [None, 10])
def test_frames_are_copied_a_few_times_however_they_come(size: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    copied = 0
    concatenate = np.concatenate

    def counted(arrays: list[np.ndarray], axis: int) -> np.ndarray:
        nonlocal copied
        joined: np.ndarray = concatenate(arrays, axis)
        copied += joined.shape[axis]
        return joined

    monkeypatch.setattr(np, "concatenate", counted)
    made = [*parts_of(Parts(0, size, 1), [np.zeros(1)] * 5000), *parts_of(Parts(0, size, 1), [np.zeros(5000)])]
    assert sum(part.frames - part.left - part.right for part in made) == 10_000
    assert copied < 10_000
    assert all(part.array.base is not None for part in made[-2:]), "a part is a view of the frames"
