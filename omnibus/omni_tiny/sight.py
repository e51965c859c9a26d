"""Read a scene from pixels: segment the picture by colour, compare each blob with the four shapes, compare the places."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from omnibus.omni_tiny import drawing
from omnibus.omni_tiny.grammar import COLOURS, SHAPES, Scene, Thing

_FOREGROUND = 70.0  # RGB distance from the background; an edge pixel half covered by the darkest colour has about 75
_COLOUR_RADIUS = 60.0  # RGB distance of a blob's colour from its name; the two nearest colours are 104 apart
_PLAIN_SHARE = 0.85  # of a blob's inner pixels that must have its colour
_SPECK = 12  # pixels; smaller blobs are noise
_SPECKS = 24  # pixels that all specks may have together
_MIN_AREA = 100  # pixels of a thing
_MIN_OVERLAP = 0.8  # intersection over union with the best shape
_SHAPE_MARGIN = 0.06  # by which the best shape beats the next
_MIN_STEP = 12.0  # pixels between two things along their relation
_CANVAS = 32


class UnclearPicture(Exception):
    """The picture is not a scene of one or two coloured shapes; the message says why."""


def read_scene(pixels: np.ndarray, *, first: Thing) -> Scene:
    """What the picture shows, told from `first` if it is there.

    `pixels` is (64, 64, 3), uint8. Raises UnclearPicture when it is not one or two plain shapes on the background.
    """
    if pixels.shape != (drawing.SIZE, drawing.SIZE, 3):
        raise UnclearPicture(f"expected a picture of 64 × 64 pixels, got shape {pixels.shape}")
    rgb = pixels.astype(np.float64)
    blobs = _blobs(np.linalg.norm(rgb - drawing.BACKGROUND, axis=-1) > _FOREGROUND)
    things = [(_read_thing(rgb, blob), _centre(blob)) for blob in blobs]
    if len(things) == 1:
        return Scene(things[0][0])
    if len(things) != 2:
        raise UnclearPicture(f"saw {len(things)} things")
    (one, place), (other, other_place) = sorted(things, key=lambda seen: seen[0] != first)
    return Scene(one, _relation(place - other_place), other)


def _read_thing(rgb: np.ndarray, blob: np.ndarray) -> Thing:
    if blob.sum() < _MIN_AREA:
        raise UnclearPicture(f"a thing of {int(blob.sum())} pixels is too small")
    return Thing(_colour(rgb, blob), _shape(blob))


def _colour(rgb: np.ndarray, blob: np.ndarray) -> str:
    inner = rgb[_eroded(blob)]
    if not len(inner):
        raise UnclearPicture("a thing has no inside")
    names = np.asarray([drawing.PALETTE[name] for name in COLOURS], dtype=np.float64)
    distances = np.linalg.norm(inner[:, None] - names[None], axis=-1)
    votes = np.where(distances.min(axis=1) <= _COLOUR_RADIUS, distances.argmin(axis=1), -1)
    shares = [float(np.mean(votes == index)) for index in range(len(COLOURS))]
    best = int(np.argmax(shares))
    if shares[best] < _PLAIN_SHARE:
        raise UnclearPicture(f"a thing is only {shares[best]:.0%} {COLOURS[best]}")
    return COLOURS[best]


def _shape(blob: np.ndarray) -> str:
    """The shape whose filled outline covers the blob best, both stretched to one bounding box."""
    rows, columns = np.nonzero(blob)
    height, width = int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1
    if not 0.7 <= height / width <= 1.43:
        raise UnclearPicture(f"a thing is stretched: {width} × {height} pixels")
    crop = Image.fromarray(blob[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1])
    mask = np.asarray(crop.resize((_CANVAS, _CANVAS), Image.Resampling.NEAREST))
    overlaps = {shape: float((mask & full).sum() / (mask | full).sum()) for shape, full in _masks().items()}
    best, second = sorted(overlaps, key=lambda shape: overlaps[shape], reverse=True)[:2]
    if overlaps[best] < _MIN_OVERLAP or overlaps[best] - overlaps[second] < _SHAPE_MARGIN:
        raise UnclearPicture(f"a thing is neither clearly {best} nor {second}")
    return best


@cache
def _masks() -> dict[str, np.ndarray]:
    return {shape: _mask(shape) for shape in SHAPES}


def _mask(shape: str) -> np.ndarray:
    """The filled shape, stretched to a bounding box of 32 × 32."""
    large = 8 * _CANVAS
    canvas = Image.new("L", (large, large))
    pen = ImageDraw.Draw(canvas)
    if shape == "circle":
        pen.ellipse((0, 0, large - 1, large - 1), fill=255)
    else:
        pen.polygon(drawing.outline(shape, np.full(2, large / 2), large / 3), fill=255)
    filled = canvas.crop(canvas.getbbox()).resize((_CANVAS, _CANVAS), Image.Resampling.BOX)
    return np.asarray(filled) > 127


def _relation(step: np.ndarray) -> str:
    """How the first thing stands to the second; `step` is (x, y) from the second to the first, in pixels."""
    dx, dy = float(step[0]), float(step[1])
    if max(abs(dx), abs(dy)) < _MIN_STEP or min(abs(dx), abs(dy)) > 0.5 * max(abs(dx), abs(dy)):
        raise UnclearPicture(f"the things stand in no clear relation: {dx:.0f}, {dy:.0f} pixels apart")
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "above" if dy < 0 else "below"


def _blobs(mask: np.ndarray) -> list[np.ndarray]:
    """Connected parts of a mask (4 neighbours), specks left out. Raises UnclearPicture when the specks are too many."""
    rest, blobs, specks = mask.copy(), [], 0
    while rest.any():
        blob = _grown(rest, np.unravel_index(int(rest.argmax()), rest.shape))
        rest &= ~blob
        area = int(blob.sum())
        if area < _SPECK:
            specks += area
        else:
            blobs.append(blob)
        if specks > _SPECKS or len(blobs) > 4:
            raise UnclearPicture("the picture is noisy")
    return blobs


def _grown(mask: np.ndarray, seed: tuple[np.intp, ...]) -> np.ndarray:
    """The part of the mask that is connected with the seed."""
    blob = np.zeros_like(mask)
    blob[seed] = True
    while True:
        wider = blob.copy()
        wider[1:] |= blob[:-1]
        wider[:-1] |= blob[1:]
        wider[:, 1:] |= blob[:, :-1]
        wider[:, :-1] |= blob[:, 1:]
        wider &= mask
        if (wider == blob).all():
            return blob
        blob = wider


def _eroded(blob: np.ndarray) -> np.ndarray:
    """The blob without its edge pixels."""
    padded = np.pad(blob, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.asarray(blob & inner)


def _centre(blob: np.ndarray) -> np.ndarray:
    rows, columns = np.nonzero(blob)
    return np.asarray([columns.mean(), rows.mean()])
