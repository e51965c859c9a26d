"""The files of a request: decoded within bounds that hold for all of them together, with their place in every error."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile
from PIL import Image

from omnibus.errors import InvalidRequest, RequestTooLarge
from omnibus.media import pictures, sound
from omnibus.wire.request import AudioPart, ImagePart
from omnibus.workers.engines import media

pytestmark = pytest.mark.unit
PIXELS = np.random.default_rng(0).integers(256, size=(4, 6, 3), dtype=np.uint8)


def audio(frames: int = 10) -> AudioPart:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(frames, np.int16), 48_000, format="FLAC")
    return AudioPart(data=file.getvalue())


def test_images_of_requests_are_decoded() -> None:
    picture = media.decode_image(ImagePart(data=pictures.encoded(PIXELS), media_type="image/jpeg"))
    np.testing.assert_array_equal(np.asarray(picture), PIXELS)


def test_audio_of_requests_is_decoded() -> None:
    file = sound.encoded(np.array([0.0, 0.25], np.float32), 16000)
    samples, rate = media.decode_audio(AudioPart(data=file))
    assert (samples.dtype, samples.shape, rate) == (np.float32, (2, 1), 16000)
    np.testing.assert_allclose(samples[:, 0], [0.0, 0.25], atol=1e-4)


@pytest.mark.parametrize("part", [ImagePart(data=b"junk"), AudioPart(data=b"junk"), ImagePart(data=audio().data)])
def test_invalid_with_its_place_when_a_file_is_junk(part: ImagePart | AudioPart) -> None:
    decode = media.decode_image if isinstance(part, ImagePart) else media.decode_audio
    with pytest.raises(InvalidRequest) as caught:
        decode(part, "there")  # type: ignore[operator]
    assert caught.value.param == "there"


@pytest.mark.parametrize("side", [10_000, 15_000])
def test_too_large_when_one_picture_is_beyond_the_bound(side: int) -> None:
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, "PNG")
    with pytest.raises(RequestTooLarge):
        media.decode_image(ImagePart(data=file.getvalue()))
