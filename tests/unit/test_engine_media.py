"""The files of a request: decoded within bounds that hold for all of them together, with their place in every error."""

from __future__ import annotations

import io
import tracemalloc

import numpy as np
import pytest
import soundfile
from PIL import Image

from omnibus.errors import InvalidRequest, RequestTooLarge
from omnibus.media import pictures, sound
from omnibus.wire.request import AudioPart, ImagePart, Message, TextPart
from omnibus.workers.engines import media

pytestmark = pytest.mark.unit
PIXELS = np.random.default_rng(0).integers(256, size=(4, 6, 3), dtype=np.uint8)
SECOND_PART = "messages[1].content[1]"


def image(side: int = 4) -> ImagePart:
    file = io.BytesIO()
    Image.new("RGB", (side, side)).save(file, "PNG")
    return ImagePart(data=file.getvalue())


def audio(frames: int = 10) -> AudioPart:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(frames, np.int16), 48_000, format="FLAC")
    return AudioPart(data=file.getvalue())


def chat(*parts: ImagePart | AudioPart) -> list[Message]:
    return [Message(role="system", content="look"), Message(role="user", content=(TextPart(text="and say"), *parts))]


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
    kind = "image" if isinstance(part, ImagePart) else "audio"
    with pytest.raises(InvalidRequest) as caught:
        media.check_sizes(chat(part))
    assert caught.value.param == f"{SECOND_PART}.{kind}"
    decode = media.decode_image if isinstance(part, ImagePart) else media.decode_audio
    with pytest.raises(InvalidRequest) as caught:
        decode(part, "there")  # type: ignore[operator]
    assert caught.value.param == "there"


def test_too_large_when_the_pictures_together_are_beyond_the_bound() -> None:
    half = image(6000)  # 36 megapixels in 100 KB
    media.check_sizes(chat(half))
    with pytest.raises(RequestTooLarge) as caught:
        media.check_sizes(chat(image(), half, half))
    assert caught.value.param == "messages[1].content[3].image"


def test_too_large_when_the_sounds_together_are_beyond_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sound, "MAX_SAMPLES", 1000)
    media.check_sizes(chat(audio(600)))
    with pytest.raises(RequestTooLarge) as caught:
        media.check_sizes(chat(audio(600), audio(600)))
    assert caught.value.param == "messages[1].content[2].audio"


def test_nothing_is_unpacked_while_sizes_are_checked() -> None:
    messages = chat(*[image(3000)] * 6)
    tracemalloc.start()
    try:
        media.check_sizes(messages)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("side", [10_000, 15_000])
def test_too_large_when_one_picture_is_beyond_the_bound(side: int) -> None:
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, "PNG")
    with pytest.raises(RequestTooLarge):
        media.decode_image(ImagePart(data=file.getvalue()))
