"""`python` stages that say what media they received, and that paint step by step."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np

from omnibus.media import pictures
from omnibus.wire.request import AudioPart, ImagePart
from omnibus.workers.engines import media
from omnibus.workers.engines.protocol import Progress, StageInput

PAINTING_STEPS = 8
finish = threading.Event()
"""Set by a test that has seen enough of the painting."""


def describe_media(stage_input: StageInput) -> str:
    """Every image by its size, every sound by its length, in their order, after the text."""
    said = [stage_input.request.text()]
    for message in stage_input.request.messages or ():
        for part in message.content if not isinstance(message.content, str) else ():
            if isinstance(part, ImagePart):
                picture = media.decode_image(part)
                said.append(f"image {picture.width}x{picture.height}")
            elif isinstance(part, AudioPart):
                samples, rate = media.decode_audio(part)
                said.append(f"audio {len(samples) / rate:g} s")
    return "; ".join(said)


def describe_as_asked(stage_input: StageInput, _sampling: object) -> str:
    """The same, by a stage that takes parameters."""
    return describe_media(stage_input)


def paint(stage_input: StageInput, _sampling: object) -> Iterator[object]:
    """A picture that gets whiter step by step, each with a preview of a quarter of its sides; `hold`: wait before the end."""
    for step in range(1, PAINTING_STEPS + 1):
        yield Progress(
            step=step, total=PAINTING_STEPS, preview=pictures.encoded(np.full((4, 6, 3), 20 * step, np.uint8))
        )
    if "hold" in stage_input.request.text():
        finish.wait(30.0)
    yield np.full((16, 24, 3), 255, np.uint8)
