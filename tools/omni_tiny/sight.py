"""Read a scene from pixels: segment the picture by colour, compare each blob with the four shapes, compare the places.

A blob's shape is the one whose silhouette, drawn with the blob's own area and centre, covers it best. Area and centre are of
the pixels' coverage, not of a mask: soft edges and lost corners hardly move them.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from omnibus.omni_tiny.vocabulary import COLOURS, SHAPES
from tools.omni_tiny import drawing
from tools.omni_tiny.grammar import Scene, Thing

_FOREGROUND = 70.0  # RGB distance from the background; an edge pixel half covered by the darkest colour has about 75
_COLOUR_RADIUS = 60.0  # RGB distance of a blob's colour from its name; the two nearest colours are 104 apart
_PLAIN_SHARE = 0.85  # of a blob's inner pixels that must have its colour
_SPECK = 12  # pixels; smaller blobs are noise
_SPECKS = 24  # pixels that all specks may have together
_MIN_AREA = 100  # pixels of a thing
_MIN_OVERLAP = 0.84  # intersection over union with the best shape; different shapes reach 0.83 with each other
_SHAPE_MARGIN = 0.04  # by which the best shape beats the next
_MIN_STEP = 12.0  # pixels between two things along their relation


class UnclearPicture(Exception):
    """The picture is not a scene of one or two coloured shapes; the message says why."""


def read_scene(pixels: np.ndarray, *, first: Thing) -> Scene:
    """Read the scene that the picture shows, described from `first` if it is there.

    `pixels` is (64, 64, 3), uint8. Raises UnclearPicture when it is not one or two plain shapes on the background.
    """
    if pixels.shape != (drawing.SIZE, drawing.SIZE, 3):
        raise UnclearPicture(f"expected a picture of 64 × 64 pixels, got shape {pixels.shape}")
    rgb = pixels.astype(np.float64)
    blobs = _blobs(foreground(rgb))
    things = [(_read_thing(rgb, blob), _centre(blob)) for blob in blobs]
    if len(things) == 1:
        return Scene(things[0][0])
    if len(things) != 2:
        raise UnclearPicture(f"saw {len(things)} things")
    (one, place), (other, other_place) = sorted(things, key=lambda seen: seen[0] != first)
    return Scene(one, _relation(place - other_place), other)


def foreground(rgb: np.ndarray) -> np.ndarray:
    """Which pixels (…, 3) belong to a thing."""
    return np.asarray(np.linalg.norm(rgb.astype(np.float64) - drawing.BACKGROUND, axis=-1) > _FOREGROUND)


def _read_thing(rgb: np.ndarray, blob: np.ndarray) -> Thing:
    if blob.sum() < _MIN_AREA:
        raise UnclearPicture(f"a thing of {int(blob.sum())} pixels is too small")
    colour = _colour(rgb, blob)
    return Thing(colour, _shape(_coverage(rgb, blob, colour)))


def _colour(rgb: np.ndarray, blob: np.ndarray) -> str:
    inner = rgb[~_grown(~blob)]
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


def _coverage(rgb: np.ndarray, blob: np.ndarray, colour: str) -> np.ndarray:
    """Return the share of each pixel that the thing covers, from 0 at the background's colour to 1 at its own; shape (64, 64)."""
    ink = np.subtract(drawing.PALETTE[colour], drawing.BACKGROUND, dtype=np.float64)
    share = (rgb - drawing.BACKGROUND) @ ink / (ink @ ink)
    return np.where(_grown(_grown(blob)), np.clip(share, 0, 1), 0)


def _shape(coverage: np.ndarray) -> str:
    """The shape whose silhouette of the same area and centre overlaps most."""
    overlaps = {shape: _overlap(coverage, _silhouette_like(coverage, shape)) for shape in SHAPES}
    best, second = sorted(overlaps, key=lambda shape: overlaps[shape], reverse=True)[:2]
    if overlaps[best] < _MIN_OVERLAP or overlaps[best] - overlaps[second] < _SHAPE_MARGIN:
        raise UnclearPicture(f"a thing is neither clearly {best} ({overlaps[best]:.2f}) nor {second}")
    return best


def _silhouette_like(coverage: np.ndarray, shape: str) -> np.ndarray:
    area, centre = _unit(shape)
    radius = float(np.sqrt(coverage.sum() / area))
    x, y = _centre(coverage) + 0.5 - centre * radius
    return drawing.silhouette(shape, (float(x), float(y)), radius)


@cache
def _unit(shape: str) -> tuple[float, np.ndarray]:
    """Area, and centre of gravity (x, y), of a shape of radius 1 around the origin."""
    radius, middle = drawing.SIZE / 4, drawing.SIZE / 2
    filled = drawing.silhouette(shape, (middle, middle), radius)
    return float(filled.sum()) / radius**2, (_centre(filled) + 0.5 - middle) / radius


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.minimum(one, other).sum() / np.maximum(one, other).sum())


def _relation(step: np.ndarray) -> str:
    """Name the relation of the first thing to the second; `step` is (x, y) from the second to the first, in pixels."""
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
        blob = _connected(rest, np.unravel_index(int(rest.argmax()), rest.shape))
        rest &= ~blob
        area = int(blob.sum())
        if area < _SPECK:
            specks += area
        else:
            blobs.append(blob)
        if specks > _SPECKS or len(blobs) > 4:
            raise UnclearPicture("the picture is noisy")
    return blobs


def _connected(mask: np.ndarray, seed: tuple[np.intp, ...]) -> np.ndarray:
    """The part of the mask that is connected with the seed."""
    blob = np.zeros_like(mask)
    blob[seed] = True
    while True:
        wider = _grown(blob) & mask
        if (wider == blob).all():
            return blob
        blob = wider


def _grown(blob: np.ndarray) -> np.ndarray:
    """The blob and its neighbours (4 a pixel)."""
    wider = blob.copy()
    wider[1:] |= blob[:-1]
    wider[:-1] |= blob[1:]
    wider[:, 1:] |= blob[:, :-1]
    wider[:, :-1] |= blob[:, 1:]
    return wider


def _centre(weights: np.ndarray) -> np.ndarray:
    """Centre of gravity (x, y) in pixel indices."""
    rows, columns = np.indices(weights.shape)
    return np.asarray([(columns * weights).sum() / weights.sum(), (rows * weights).sum() / weights.sum()])
