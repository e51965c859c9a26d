"""Read the motion of a film: its first thing comes in from its side of the other, steadily, and the other one stands still.

The film is turned so that the first thing comes from the left; then it is where columns below the middle are, a thing alone
anywhere.
"""

from __future__ import annotations

import numpy as np

from tools.omni_tiny import drawing, sight
from tools.omni_tiny.grammar import Scene

MIN_FRAMES = 8
_TURNS = {"left": 0, "above": 1, "right": 2, "below": 3}
_HIDDEN = 0.1  # share of the thing's pixels that the first frame may show
_SHRINKING = 0.1  # share of its pixels that may be lost from one frame to the next: edges change as it moves
_BACKWARDS = 1  # pixels that its front may go back
_STEADY = 2.5  # times its mean speed, and two pixels, that it may go in one frame
_STILL = 0.8  # intersection over union of the other thing with its last place, in every frame
_COLOUR = 60.0  # RGB distance of the moving pixels from the thing's colour
_SEEN = 60  # pixels of it that a frame must show for its colour to be read
_COLUMN = 3  # pixels of a column that belong to its front


def fault(frames: np.ndarray, scene: Scene) -> str:
    """Describe the first fault of the motion in frames (F, 64, 64, 3), uint8; empty if there is none."""
    if len(frames) < MIN_FRAMES:
        return f"expected at least {MIN_FRAMES} frames, got {len(frames)}"
    turned = np.rot90(frames, _TURNS[scene.relation or "left"], axes=(1, 2))
    width = drawing.SIZE if scene.relation is None else drawing.SIZE // 2
    seen = sight.foreground(turned)
    moving, still = seen[:, :, :width], seen[:, :, width:]
    return (
        _wrong_coming(moving.sum(axis=(1, 2)))
        or _wrong_way([_front(mask) for mask in moving])
        or _wrong_rest(still)
        or _wrong_colour(turned[:, :, :width], moving, scene)
    )


def _wrong_coming(areas: np.ndarray) -> str:
    """The thing is not there at first, and more of it with every frame."""
    if areas[0] > _HIDDEN * areas[-1]:
        return f"the first frame shows {areas[0]} of {areas[-1]} pixels of the thing that comes in"
    lost = int(np.max(areas[:-1] - areas[1:], initial=0))
    return f"a frame shows {lost} pixels less than the one before" if lost > _SHRINKING * areas[-1] else ""


def _wrong_way(fronts: list[int]) -> str:
    """The front of the thing goes to the right, without jumps."""
    shown = [front for front in fronts if front >= 0]
    steps = np.diff(shown)
    if len(shown) < MIN_FRAMES // 2 or shown[-1] - shown[0] < drawing.SIZE // 4:
        return f"it moves by {shown[-1] - shown[0] if shown else 0} pixels in {len(shown)} frames"
    if steps.min() < -_BACKWARDS:
        return "it goes back"
    most = _STEADY * steps.mean() + 2
    return f"it jumps by {steps.max()} pixels" if steps.max() > most else ""


def _front(mask: np.ndarray) -> int:
    """The last column that shows the thing, -1 for none."""
    columns = np.flatnonzero(mask.sum(axis=0) >= _COLUMN)
    return int(columns[-1]) if len(columns) else -1


def _wrong_rest(masks: np.ndarray) -> str:
    last = masks[-1]
    for number, mask in enumerate(masks):
        union = int((mask | last).sum())
        if union and (mask & last).sum() < _STILL * union:
            return f"the other thing moves in frame {number}"
    return ""


def _wrong_colour(frames: np.ndarray, masks: np.ndarray, scene: Scene) -> str:
    ink = np.asarray(drawing.PALETTE[scene.first.colour], dtype=np.float64)
    for number, (frame, mask) in enumerate(zip(frames, masks, strict=True)):
        if mask.sum() >= _SEEN and np.linalg.norm(np.median(frame[mask], axis=0) - ink) > _COLOUR:
            return f"frame {number} shows another thing coming in than a {scene.first.colour} one"
    return ""
