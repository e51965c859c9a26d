"""Files in the format that was asked for hold what they held before."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile
from PIL import Image

from omnibus.client.request_events import Output
from omnibus.errors import EngineError
from omnibus.frontdoor.transcoding import PCM_RATE, encode_audio, encode_image, resample, transcoded
from omnibus.wire.envelope import TokenUsage

pytestmark = pytest.mark.unit

TONE_HZ = 1000


def tone(rate: int, seconds: float = 0.5) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * TONE_HZ * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def wav(rate: int = 8000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, tone(rate), rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def loudest_hz(samples: np.ndarray, rate: int) -> float:
    spectrum = np.abs(np.fft.rfft(samples))
    return float(np.argmax(spectrum) * rate / len(samples))


@pytest.mark.parametrize("audio", ["wav", "flac", "mp3", "opus"])
@pytest.mark.parametrize("rate", [8000, 11_025, 96_000])
def test_a_sound_keeps_its_tone_and_length_in_every_format(audio: str, rate: int) -> None:
    samples, out_rate = soundfile.read(io.BytesIO(encode_audio(wav(rate), audio)))
    assert loudest_hz(samples, out_rate) == pytest.approx(TONE_HZ, abs=10)
    assert len(samples) / out_rate == pytest.approx(0.5, abs=0.15)  # mp3 pads with frames


def test_pcm_is_16_bit_at_the_rate_that_clients_expect() -> None:
    samples = np.frombuffer(encode_audio(wav(), "pcm"), dtype="<i2")
    assert len(samples) == PCM_RATE // 2
    assert loudest_hz(samples.astype(float), PCM_RATE) == pytest.approx(TONE_HZ, abs=5)
    assert np.max(np.abs(samples)) == pytest.approx(0.5 * 32767, rel=0.02)


def test_resampling_there_and_back_gives_the_same_samples() -> None:
    samples = tone(8000)[:, np.newaxis]
    back = resample(resample(samples, 8000, 24_000), 24_000, 8000)
    assert np.max(np.abs(back - samples)) < 1e-4


@pytest.mark.parametrize(("image", "name"), [("jpeg", "JPEG"), ("webp", "WEBP"), ("png", "PNG")])
def test_an_image_keeps_its_size_in_every_format(image: str, name: str) -> None:
    file = io.BytesIO()
    Image.new("RGBA", (6, 4), (255, 0, 0, 255)).save(file, format="PNG")
    picture = Image.open(io.BytesIO(encode_image(file.getvalue(), image)))
    assert (picture.format, picture.size) == (name, (6, 4))


async def test_an_output_is_left_alone_when_it_has_the_format_or_is_of_another_kind() -> None:
    output = Output(
        stage_id=0, modality="audio", finish_reason="stop", usage=TokenUsage(), items=(b"x",), media_type="audio/wav"
    )
    assert await transcoded(output, audio="wav") is output
    assert await transcoded(output, image="png") is output


@pytest.mark.parametrize("encode", [lambda: encode_audio(b"junk", "mp3"), lambda: encode_image(b"junk", "jpeg")])
def test_an_engine_error_is_raised_when_the_pipeline_delivered_junk(encode: object) -> None:
    with pytest.raises(EngineError):
        encode()  # type: ignore[operator]
