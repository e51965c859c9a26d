"""The clip stage of omni-tiny: the picture as a short film, in which the first thing comes in from its own side. numpy only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from omnibus.errors import EngineRejected
from omnibus.omni_tiny import vocabulary
from omnibus.workers.engines.protocol import Chunk, Outputs, StageInput

MIN_FRAMES, MAX_FRAMES = 2, 96
MAX_FPS = 60.0
CHUNK = 4
"""Frames that a caller who streams is sent together."""
QUARTER_TURNS = {"left": 0, "above": 1, "right": 2, "below": 3}
"""Turns to the left by which the first thing of a relation comes to stand at the left."""
_READ = frozenset({"num_frames", "fps", "seconds", "width", "height", "seed"})


def film(stage_input: StageInput, sampling: Mapping[str, Any]) -> Iterator[Chunk | Outputs]:
    """Film the dit's pictures: `video`, uint8 (n, F, H, W, 3), and `fps`; of one picture a few frames after the other.

    The first thing of the thinker's description comes in from its side of the other, a thing alone from the left; the last frame
    is the picture. `num_frames` and `fps`, or `seconds`, say how long. Raises EngineRejected naming a parameter that is wrong.
    """
    pictures = np.asarray(stage_input.sources["dit"]["image"])
    count, fps = _length(sampling)
    _check_others(sampling, pictures.shape[1:3])
    relation = relation_of(stage_input.sources["thinker"]["token_ids"])
    if len(pictures) > 1:
        yield {"video": np.stack([frames_of(picture, relation, count) for picture in pictures]), "fps": fps}
        return
    for start in range(0, count, CHUNK):
        numbers = range(start, min(start + CHUNK, count))
        yield Chunk(outputs={"video": frames_of(pictures[0], relation, count, numbers), "fps": fps})


def frames_of(picture: np.ndarray, relation: str | None, count: int, numbers: range | None = None) -> np.ndarray:
    """The frames of a square picture (S, S, 3), of things that stand in this relation; (count, S, S, 3).

    `numbers` are those that are wanted, where not all are.
    """
    numbers = range(count) if numbers is None else numbers
    turns = QUARTER_TURNS[relation or "left"]
    turned = np.rot90(picture, turns)
    moving = len(picture) if relation is None else len(picture) // 2
    background = np.median(np.concatenate([turned[0], turned[-1]]), axis=0).astype(picture.dtype)
    frames = np.repeat(turned[None], len(numbers), axis=0)
    for number, frame in zip(numbers, frames, strict=True):
        hidden = round(moving * (1 - number / (count - 1)))
        frame[:, :moving] = background
        frame[:, : moving - hidden] = turned[:, hidden:moving]
    return np.rot90(frames, -turns, axes=(1, 2))


def relation_of(token_ids: Sequence[int]) -> str | None:
    """The relation in the thinker's description, None of a thing alone."""
    *ids, _end = vocabulary.only_canonical(token_ids)
    words = (vocabulary.CANONICAL_WORDS[one - vocabulary.CANONICAL_BASE].strip() for one in ids)
    return next((word for word in words if word in vocabulary.RELATIONS), None)


def _length(sampling: Mapping[str, Any]) -> tuple[int, float]:
    """Frames, and how many are shown a second."""
    fps = _number(sampling, "fps", MAX_FPS)
    if "seconds" not in sampling:
        return _frames(sampling["num_frames"], "num_frames"), fps
    return _frames(round(_number(sampling, "seconds", MAX_FRAMES) * fps), "seconds"), fps


def _frames(count: Any, param: str) -> int:
    if type(count) is not int or not MIN_FRAMES <= count <= MAX_FRAMES:
        raise EngineRejected(f"a clip has {MIN_FRAMES} to {MAX_FRAMES} frames, not {count!r}", param=param)
    return count


def _number(sampling: Mapping[str, Any], name: str, most: float) -> float:
    value = sampling[name]
    if type(value) not in (int, float) or not 0 < value <= most:
        raise EngineRejected(f"{name} is a number above 0, at most {most:g}, not {value!r}", param=name)
    return float(value)


def _check_others(sampling: Mapping[str, Any], size: tuple[int, ...]) -> None:
    """Refuse what a film of this picture cannot have."""
    for name, side in zip(("height", "width"), size, strict=True):
        if sampling.get(name, side) != side:
            raise EngineRejected(f"the picture's {name} is {side}; ask the stage dit for another", param=name)
    unread = next((name for name in sampling if name not in _READ), None)
    if unread is not None:
        raise EngineRejected(f"a clip has no {unread}: give it to another stage by sampling_params", param=unread)
