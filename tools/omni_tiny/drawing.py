"""The renderer of scenes: it draws the training images and the graders' examples."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw

from tools.omni_tiny.grammar import Scene, Thing

SIZE = 64
BACKGROUND = (20, 20, 24)
PALETTE: Mapping[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "orange": (250, 140, 20),
    "yellow": (245, 230, 60),
    "green": (40, 170, 70),
    "blue": (40, 90, 235),
    "purple": (170, 60, 200),
    "white": (245, 245, 245),
}
_SCALE = 4  # drawn this much larger, then averaged: smooth edges
_ARM = 0.36
_CORNERS = {
    "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
    "triangle": [(0.0, -1.0), (1.0, 0.9), (-1.0, 0.9)],
    "cross": [
        (-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM),
        (_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM),
    ],
}  # fmt: skip
_OFFSETS = {"left": (-15, 0), "right": (15, 0), "above": (0, -15), "below": (0, 15)}


def draw(scene: Scene, rng: np.random.Generator | None = None) -> np.ndarray:
    """Render a scene; shape (64, 64, 3), uint8. With `rng`, sizes and places vary by some pixels."""
    canvas = Image.new("RGB", (SIZE * _SCALE, SIZE * _SCALE), BACKGROUND)
    pen = ImageDraw.Draw(canvas)
    for thing, centre in _places(scene):
        shift = rng.uniform(-2.0, 2.0, size=2) if rng is not None else np.zeros(2)
        radius = rng.uniform(9.5, 11.5) if rng is not None else 10.5
        _fill(pen, thing.shape, (np.asarray(centre) + shift) * _SCALE, radius * _SCALE, PALETTE[thing.colour])
    return np.asarray(canvas.resize((SIZE, SIZE), Image.Resampling.BOX))


def silhouette(shape: str, centre: tuple[float, float], radius: float) -> np.ndarray:
    """Return the share of each pixel that a shape covers: (64, 64), float in [0, 1]. `centre` is (x, y) in pixels."""
    canvas = Image.new("L", (SIZE * _SCALE, SIZE * _SCALE))
    _fill(ImageDraw.Draw(canvas), shape, np.asarray(centre) * _SCALE, radius * _SCALE, 255)
    return np.asarray(canvas.resize((SIZE, SIZE), Image.Resampling.BOX)) / 255


def _places(scene: Scene) -> list[tuple[Thing, tuple[int, int]]]:
    middle = SIZE // 2
    if scene.relation is None or scene.second is None:
        return [(scene.first, (middle, middle))]
    dx, dy = _OFFSETS[scene.relation]
    return [(scene.first, (middle + dx, middle + dy)), (scene.second, (middle - dx, middle - dy))]


def _fill(
    pen: ImageDraw.ImageDraw, shape: str, centre: np.ndarray, radius: float, ink: int | tuple[int, int, int]
) -> None:
    x, y = float(centre[0]), float(centre[1])
    if shape == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ink)
        return
    pen.polygon([(x + dx * radius, y + dy * radius) for dx, dy in _CORNERS[shape]], fill=ink)
