"""The result of a pipeline's call as outputs of its rows: pictures, videos, sound."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from omnibus.errors import EngineError

Row = Mapping[str, np.ndarray]
"""The outputs of one row of a batch: `image` (k, H, W, 3), `video` (F, H, W, 3), both uint8, `audio` (channels, frames)."""


def rows_of(result: Any, count: int) -> list[Row]:
    """The outputs of each row; raises EngineError for a result without any, or of numbers that are none."""
    made = {name: values for name, values in _made(result) if values is not None}
    if not made:
        raise EngineError(f"it made neither images, frames nor audios, but a {type(result).__name__}")
    rows = {name: _READERS[name](values, count) for name, values in made.items()}
    if any(len(values) != count for values in rows.values()):
        sizes = ", ".join(f"{len(values)} of {name}" for name, values in rows.items())
        raise EngineError(f"it was to make {count} results, and made {sizes}")
    return [{name: values[row] for name, values in rows.items()} for row in range(count)]


def outputs_of(rows: Sequence[Row], *, fps: float, sample_rate: int) -> dict[str, Any]:
    """The outputs of a request from those of its rows."""
    outputs: dict[str, Any] = {}
    if "image" in rows[0]:
        outputs["image"] = np.concatenate([row["image"] for row in rows])
    if "video" in rows[0]:
        outputs |= {"video": np.stack([row["video"] for row in rows]), "fps": fps}
    if "audio" in rows[0]:
        sounds = [row["audio"] for row in rows]
        outputs |= {"audio": sounds[0] if len(sounds) == 1 else sounds, "sample_rate": sample_rate}
    return outputs


def _made(result: Any) -> Iterator[tuple[str, Any]]:
    yield "image", getattr(result, "images", None)
    yield "video", getattr(result, "frames", None)
    sounds = getattr(result, "audios", None)
    yield "audio", sounds if sounds is not None else getattr(result, "audio", None)


def _images(values: Any, count: int) -> list[np.ndarray]:
    pictures = [_eight_bit(_array(one)) for one in values]
    if len(pictures) != count and count == 1:  # layers of one picture
        return [np.stack(pictures)]
    return [one if one.ndim == 4 else one[None] for one in pictures]


def _videos(values: Any, count: int) -> list[np.ndarray]:
    if count == 1 and getattr(values, "ndim", 5) == 4:
        values = values[None]
    return [_eight_bit(_array(one)) for one in values]


def _sounds(values: Any, count: int) -> list[np.ndarray]:
    sounds = _array(values).astype(np.float32)
    if not np.isfinite(sounds).all():
        raise EngineError("its sound has samples that are no numbers")
    if sounds.ndim == 1 or (sounds.ndim == 2 and len(sounds) != count):
        sounds = sounds[None]
    return [np.atleast_2d(one) for one in sounds]


def _array(value: Any) -> np.ndarray:
    if isinstance(value, list | tuple):
        return np.stack([_array(one) for one in value])
    return value.detach().float().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)


def _eight_bit(pixels: np.ndarray) -> np.ndarray:
    """Pixels in [0, 1] as whole numbers up to 255; those that are so already, as they are."""
    if pixels.dtype == np.uint8:
        return pixels
    if not np.isfinite(pixels).all():
        raise EngineError("its picture has pixels that are no numbers; another dtype may help")
    return (pixels * 255).round().clip(0, 255).astype(np.uint8)


_READERS = {"image": _images, "video": _videos, "audio": _sounds}
