"""Pictures and sound as files."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile
from PIL import Image

from omnibus.errors import EngineError, InvalidRequest, RequestTooLarge
from omnibus.wire.request import AudioPart, ImagePart
from omnibus.workers.engines import media

pytestmark = pytest.mark.unit
PIXELS = np.random.default_rng(0).integers(256, size=(2, 4, 6, 3), dtype=np.uint8)


def test_pixels_survive_when_images_are_encoded() -> None:
    files = media.encode_image(PIXELS)

    assert len(files) == 2
    for file, pixels in zip(files, PIXELS, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(file))), pixels)


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1), (4, 6, 3), (4, 6, 4)])
def test_one_file_when_there_is_one_image(shape: tuple[int, ...]) -> None:
    (file,) = media.encode_image(np.zeros(shape, np.uint8))

    assert Image.open(io.BytesIO(file)).size == (6, 4)


@pytest.mark.parametrize("image", [np.zeros((4, 6, 3), np.float32), np.zeros(4, np.uint8)])
def test_engine_error_when_an_output_is_no_image(image: np.ndarray) -> None:
    with pytest.raises(EngineError):
        media.encode_image(image)


def test_samples_survive_when_audio_is_encoded() -> None:
    samples = np.array([0.0, 0.5, -0.5, 2.0], np.float32)

    read, rate = soundfile.read(io.BytesIO(media.encode_audio(samples, 8000)))

    assert rate == 8000
    np.testing.assert_allclose(read, [0.0, 0.5, -0.5, 1.0], atol=1e-4)


def test_channels_survive_when_audio_is_encoded() -> None:
    read, _ = soundfile.read(io.BytesIO(media.encode_audio(np.zeros((2, 5), np.float32), 8000)))

    assert read.shape == (5, 2)


def test_engine_error_when_an_output_is_no_audio() -> None:
    with pytest.raises(EngineError):
        media.encode_audio(np.zeros(5, np.int16), 8000)


def test_images_of_requests_are_decoded() -> None:
    (file,) = media.encode_image(PIXELS[0])

    np.testing.assert_array_equal(np.asarray(media.decode_image(ImagePart(data=file))), PIXELS[0])


def test_audio_of_requests_is_decoded() -> None:
    file = media.encode_audio(np.array([0.0, 0.25], np.float32), 16000)

    samples, rate = media.decode_audio(AudioPart(data=file))

    assert (samples.dtype, samples.shape, rate) == (np.float32, (2, 1), 16000)
    np.testing.assert_allclose(samples[:, 0], [0.0, 0.25], atol=1e-4)


@pytest.mark.parametrize("junk", [b"", b"junk", media.encode_image(PIXELS[0])[0][:60]])
def test_invalid_when_media_is_junk(junk: bytes) -> None:
    with pytest.raises(InvalidRequest, match="image part"):
        media.decode_image(ImagePart(data=junk))
    with pytest.raises(InvalidRequest, match="audio part"):
        media.decode_audio(AudioPart(data=junk))


def test_too_large_when_an_image_claims_too_many_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "MAX_PIXELS", 10)
    with pytest.raises(RequestTooLarge):
        media.decode_image(ImagePart(data=media.encode_image(PIXELS[0])[0]))
