"""A `python` stage that says what media it received."""

from __future__ import annotations

from omnibus.wire.request import AudioPart, ImagePart
from omnibus.workers.engines import media
from omnibus.workers.engines.protocol import StageInput


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
