"""Outputs leave in the format that the caller asked for, whatever they were labelled as."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from omnibus.client.request_events import Output
from omnibus.errors import EngineError
from omnibus.frontdoor.answers import transcoded
from omnibus.media import pictures, sound

pytestmark = pytest.mark.unit
WAV = sound.encoded(np.zeros((6, 4800), np.float32), 48_000)
PNG = pictures.encoded(np.zeros((4, 6, 3), np.uint8))


def output(modality: str, item: bytes, media_type: str) -> Output:
    return Output(stage_id=3, modality=modality, items=(item,), media_type=media_type)


@pytest.mark.parametrize("audio", [*sound.FORMATS, "pcm16"])
async def test_sound_is_converted_and_labelled(audio: str) -> None:
    made = await transcoded(output("audio", WAV, "audio/wav"), audio=audio)
    expected = sound.FORMATS[audio.removesuffix("16")].media_type
    assert made.media_type == expected
    if not audio.startswith("pcm"):
        assert sound.media_type(made.items[0]) == expected


@pytest.mark.parametrize("image", ["png", "jpeg", "webp"])
async def test_pictures_are_converted_and_labelled(image: str) -> None:
    made = await transcoded(output("image", PNG, "image/png"), image=image)
    assert (made.media_type, Image.open(io.BytesIO(made.items[0])).format) == (f"image/{image}", image.upper())


async def test_content_counts_and_not_the_label() -> None:
    assert (await transcoded(output("audio", WAV, "audio/mpeg"), audio="wav")).media_type == "audio/wav"
    made = await transcoded(output("image", pictures.converted(PNG, "jpeg"), "image/png"), image="png")
    assert Image.open(io.BytesIO(made.items[0])).format == "PNG"


async def test_an_output_is_left_alone_when_it_has_the_format_or_is_of_another_kind() -> None:
    made = output("audio", WAV, "audio/wav")
    assert (await transcoded(made, audio="wav")).items[0] is WAV
    assert await transcoded(made, image="png") is made
    assert await transcoded(made) is made


@pytest.mark.parametrize(("modality", "wanted"), [("audio", {"audio": "mp3"}), ("image", {"image": "jpeg"})])
async def test_engine_error_naming_the_stage_when_an_output_cannot_be_read(
    modality: str, wanted: dict[str, str]
) -> None:
    with pytest.raises(EngineError, match="stage 3"):
        await transcoded(output(modality, b"junk", "image/png"), **wanted)
