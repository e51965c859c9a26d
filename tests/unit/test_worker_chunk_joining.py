"""Chunks joined to the whole of a stage's outputs."""

from __future__ import annotations

import numpy as np
import pytest

from omnibus.workers.engines.chunk_joining import joined
from omnibus.workers.engines.protocol import Chunk
from tests.support.device_tensors import CudaTensor

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("shapes", [((100,), (50,)), ((2, 100), (2, 100)), ((2, 100), (2, 50), (2, 1))])
def test_sound_follows_along_its_frames_and_other_arrays_along_their_rows(shapes: list[tuple[int, ...]]) -> None:
    chunks = [Chunk(outputs={"voice": np.zeros(shape), "states": np.zeros((shape[-1], 3))}) for shape in shapes]
    whole = joined(chunks, {"voice": "audio", "states": "tensor"})
    frames = sum(shape[-1] for shape in shapes)
    assert whole["voice"].shape == (*shapes[0][:-1], frames)
    assert whole["states"].shape == (frames, 3)


def test_tensors_follow_each_other_as_arrays_do_when_they_are_on_a_gpu() -> None:
    parts = [np.arange(6.0).reshape(2, 3) + 10 * number for number in range(3)]
    whole = joined([Chunk(outputs={"voice": CudaTensor(part)}) for part in parts], {"voice": "audio"})
    assert whole["voice"].tolist() == np.concatenate(parts, -1).tolist()


def test_value_error_when_a_sound_changes_its_channels() -> None:
    with pytest.raises(ValueError, match="dimension"):
        joined([Chunk(outputs={"a": np.zeros((2, 4))}), Chunk(outputs={"a": np.zeros((1, 4))})], {"a": "audio"})
