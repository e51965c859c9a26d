"""Sound is told by its content, decoded whatever its depth, and written in the format asked for."""

from __future__ import annotations

import io
import struct

import av
import numpy as np
import pytest
import soundfile

from omnibus.errors import EngineError, InvalidRequest, RequestTooLarge
from omnibus.media import sound
from omnibus.workers.output_files import encoded

pytestmark = pytest.mark.unit
TONE_HZ = 1000
SECONDS = 0.5


def tone(rate: int, channels: int = 1) -> np.ndarray:
    one = (0.5 * np.sin(2 * np.pi * TONE_HZ * np.arange(int(rate * SECONDS)) / rate)).astype(np.float32)
    return np.tile(one, (channels, 1))


def loudest_hz(samples: np.ndarray, rate: int) -> float:
    return float(np.argmax(np.abs(np.fft.rfft(samples))) * rate / len(samples))


def by_soundfile(kind: str, subtype: str, rate: int = 16_000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, tone(rate)[0], rate, format=kind, subtype=subtype)
    return file.getvalue()


def by_ffmpeg(container: str, codec: str, rate: int = 48_000) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone(rate), format="fltp", layout="mono")
        frame.sample_rate = rate
        fitted = av.AudioResampler(stream.format, "mono", rate, stream.codec_context.frame_size or None)
        for piece in (*fitted.resample(frame), *fitted.resample(None)):
            out.mux(stream.encode(piece))
        out.mux(stream.encode(None))
    return file.getvalue()


FILES = {
    **{
        f"wav {depth}": by_soundfile("WAV", depth)
        for depth in ("PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW")
    },
    "flac of 24 bits": by_soundfile("FLAC", "PCM_24"),
    "ogg vorbis": by_soundfile("OGG", "VORBIS"),
    "aiff": by_soundfile("AIFF", "PCM_16"),
    "mp3": by_soundfile("MP3", "MPEG_LAYER_III"),
    "m4a of a phone": by_ffmpeg("ipod", "aac"),
    "webm of a browser": by_ffmpeg("webm", "libopus"),
    "mp4": by_ffmpeg("mp4", "aac"),
    "caf": by_ffmpeg("caf", "pcm_s16le"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_tone_is_heard_in_every_format_that_clients_send(name: str) -> None:
    samples, rate = sound.decoded(FILES[name])
    assert (samples.dtype, len(samples)) == (np.float32, 1)
    assert loudest_hz(samples[0], rate) == pytest.approx(TONE_HZ, abs=10)
    assert np.max(np.abs(samples)) == pytest.approx(0.5, abs=0.1)
    assert samples.shape[1] / rate == pytest.approx(SECONDS, abs=0.1)


@pytest.mark.parametrize("wanted", [name for name in sound.FORMATS if name not in ("pcm", "aac")])
@pytest.mark.parametrize("rate", [8000, 11_025, 96_000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_another_reader_hears_the_tone_in_every_format_that_is_written(wanted: str, rate: int, channels: int) -> None:
    samples, out_rate = soundfile.read(io.BytesIO(sound.encoded(tone(rate, channels), rate, wanted)), always_2d=True)
    assert loudest_hz(samples[:, 0], out_rate) == pytest.approx(TONE_HZ, abs=10)
    assert len(samples) / out_rate == pytest.approx(SECONDS, abs=0.1)
    assert samples.shape[1] == (min(channels, 2) if wanted == "mp3" else channels)
    assert np.max(np.abs(samples)) < 0.6, "mixing down does not overdrive"


def test_aac_is_written() -> None:
    data = sound.encoded(tone(44_100), 44_100, "aac")
    samples, rate = sound.decoded(data)
    assert (sound.media_type(data), round(loudest_hz(samples[0], rate), -1)) == ("audio/aac", TONE_HZ)


@pytest.mark.parametrize("rate", [8000, 44_100])
@pytest.mark.parametrize("channels", [1, 6])
def test_pcm_is_16_bit_mono_at_the_rate_that_clients_expect(rate: int, channels: int) -> None:
    samples = np.frombuffer(sound.encoded(tone(rate, channels), rate, "pcm"), dtype="<i2")
    assert len(samples) == int(sound.PCM_RATE * SECONDS)
    assert loudest_hz(samples.astype(float), sound.PCM_RATE) == pytest.approx(TONE_HZ, abs=5)
    assert np.max(np.abs(samples)) == pytest.approx(0.5 * 32767, rel=0.05)


@pytest.mark.parametrize("channels", range(1, sound.MAX_CHANNELS + 1))
def test_channels_survive_in_their_order(channels: int) -> None:
    levels = np.linspace(0.1, 0.8, channels, dtype=np.float32)[:, np.newaxis] * np.ones(100, np.float32)
    np.testing.assert_allclose(sound.decoded(sound.encoded(levels, 48_000))[0], levels, atol=1e-4)


def test_samples_are_clipped_and_integers_scaled() -> None:
    read, _ = soundfile.read(io.BytesIO(sound.encoded(np.array([0.0, 0.5, -0.5, 2.0], np.float32), 8000)))
    np.testing.assert_allclose(read, [0.0, 0.5, -0.5, 1.0], atol=1e-4)
    read, _ = soundfile.read(io.BytesIO(sound.encoded(np.array([0, 16_384, -32_768], np.int16), 8000)))
    np.testing.assert_allclose(read, [0.0, 0.5, -1.0], atol=1e-4)


def test_the_same_samples_make_the_same_file() -> None:
    for wanted in sound.FORMATS:
        assert sound.encoded(tone(24_000), 24_000, wanted) == sound.encoded(tone(24_000), 24_000, wanted)


PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/hostname\n"
JUNK = {
    "nothing": b"",
    "text": b"hello world",
    "a playlist": PLAYLIST,
    "a list of files": b"ffconcat version 1.0\nfile /etc/hostname\n",
    "a hollow m4a": b"\0\0\0\x20ftypM4A \0\0\0\0" + bytes(100),
    "the head of a wav": b"RIFF\0\0\0\0WAVE",
    "an empty wav": sound.encoded(tone(8000), 8000)[:44],
    "half a header": by_soundfile("FLAC", "PCM_16")[:30],
    "zeroes behind a tag": b"ID3" + bytes(60),
}


@pytest.mark.parametrize("name", JUNK)
def test_invalid_when_it_is_no_sound(name: str) -> None:
    with pytest.raises(InvalidRequest):
        sound.decoded(JUNK[name])


def test_too_large_when_a_small_file_claims_many_samples() -> None:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(1_000_000, np.int16), 48_000, format="FLAC")
    assert sound.length(file.getvalue()) == 1_000_000
    with pytest.raises(RequestTooLarge):
        sound.decoded(file.getvalue(), 999_999)


def test_too_large_when_a_file_holds_more_than_it_claims() -> None:
    data = bytearray(by_soundfile("FLAC", "PCM_16"))
    packed = int.from_bytes(data[18:26], "big") >> 36 << 36  # STREAMINFO's count of samples is its last 36 bits
    data[18:26] = (packed | 10).to_bytes(8, "big")
    assert sound.length(bytes(data)) < 8000
    with pytest.raises(RequestTooLarge):
        sound.decoded(bytes(data), 7999)


def test_a_wav_of_unknown_length_is_decoded() -> None:
    data = bytearray(sound.encoded(tone(8000), 8000))
    place = data.index(b"data") + 4
    data[place : place + 4] = struct.pack("<I", 0xFFFFFFFF)
    assert sound.decoded(bytes(data))[0].shape == (1, 4000)


@pytest.mark.parametrize(
    ("samples", "rate"),
    [
        (np.zeros(0, np.float32), 8000),
        (np.zeros((2, 0), np.float32), 8000),
        (np.zeros((4800, 6), np.float32), 8000),
        (np.array([np.nan]), 8000),
        (np.array([np.inf]), 8000),
        (np.array(["a"]), 8000),
        (np.array(1.0), 8000),
        (np.zeros(5), 0),
        (np.zeros(5), -8000),
        (np.zeros(5), 10**9),
        (np.zeros(5), 1),
        (np.zeros(5), True),
        (np.zeros(5), 999),
    ],
)
def test_engine_error_when_samples_are_no_sound(samples: np.ndarray, rate: int) -> None:
    with pytest.raises(EngineError):
        sound.encoded(samples, rate)


@pytest.mark.parametrize("wanted", ["pcm", "opus"])
def test_engine_error_when_a_higher_rate_makes_much_of_a_low_one(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    monkeypatch.setattr(sound, "MAX_GROWN", 50_000)
    with pytest.raises(EngineError, match="higher rate"):
        sound.encoded(np.zeros(10_000, np.int8), 1_000, wanted)
    assert sound.encoded(np.zeros(60_000, np.int8), 48_000, wanted), "nothing grows"


@pytest.mark.parametrize("wanted", sound.FORMATS)
def test_a_long_sound_is_whole_when_it_is_encoded_in_slices(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    at_once = sound.encoded(tone(16_000, 2), 16_000, wanted)
    monkeypatch.setattr(sound, "_SLICE", 1000)
    assert sound.encoded(tone(16_000, 2), 16_000, wanted) == at_once


@pytest.mark.parametrize("wanted", sound.FORMATS)
def test_a_sound_is_converted_from_any_other_format(wanted: str) -> None:
    for data in FILES.values():
        assert len(sound.converted(data, wanted)) > 500


def test_a_sound_is_left_alone_when_it_has_the_format() -> None:
    data = FILES["mp3"]
    assert sound.converted(data, "mp3") is data
    assert b"OpusHead" in sound.converted(FILES["ogg vorbis"], "opus"), "Vorbis in Ogg is no Opus"


def test_engine_error_when_a_sound_cannot_be_converted() -> None:
    with pytest.raises(EngineError):
        sound.converted(b"junk", "mp3")


def test_a_sound_is_written_at_another_rate_when_it_is_asked_for() -> None:
    samples, rate = sound.decoded(sound.encoded(tone(48_000), 48_000, at=16_000))
    assert (rate, samples.shape) == (16_000, (1, 8000))
    assert loudest_hz(samples[0], rate) == pytest.approx(TONE_HZ, abs=5)


@pytest.mark.parametrize("wanted", sound.FORMATS)
@pytest.mark.parametrize("rate", [8000, 24_000])
def test_a_sound_leaves_while_it_is_made_when_it_is_written_piece_by_piece(wanted: str, rate: int) -> None:
    encoder, made = sound.SoundEncoder(rate, 1, wanted), np.tile(tone(rate), 2)
    pieces = [encoder.write(piece) for piece in np.array_split(made, 10, axis=1)]
    assert any(pieces[:5]), "a player begins before half of it is made"
    data = b"".join((*pieces, encoder.end()))
    if wanted in ("pcm", "aac"):
        assert data == sound.encoded(made, rate, wanted), "formats without a length are the same either way"
    samples, out_rate = (
        sound.decoded(data) if wanted != "pcm" else (np.frombuffer(data, "<i2")[np.newaxis], sound.PCM_RATE)
    )
    assert loudest_hz(samples[0].astype(float), out_rate) == pytest.approx(TONE_HZ, abs=10)
    assert samples.shape[1] / out_rate == pytest.approx(2 * SECONDS, abs=0.2)


def test_another_reader_hears_all_of_a_wav_when_its_length_was_unknown() -> None:
    encoder = sound.SoundEncoder(8000, 1, "wav")
    data = encoder.write(tone(8000)) + encoder.end()
    assert data[4:8] == data[40:44] == b"\xff\xff\xff\xff"
    samples, rate = soundfile.read(io.BytesIO(data))
    np.testing.assert_allclose(samples, tone(8000)[0], atol=1e-4)
    assert rate == 8000


def test_engine_error_when_a_piece_has_other_channels_than_the_first() -> None:
    encoder = sound.SoundEncoder(8000, 1, "flac")
    encoder.write(tone(8000))
    with pytest.raises(EngineError):
        encoder.write(tone(8000, 2))


@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.25, 0.5, 2.0])
def test_the_rest_of_a_stages_sound_is_read_however_long_it_is(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr(sound, "MAX_SAMPLES", 10)
    samples, rate = sound.rest(sound.encoded(tone(8000, 2), 8000), seconds)
    expected = tone(8000, 2)[:, int(seconds * 8000) :]
    assert (rate, samples.shape[1]) == (8000, expected.shape[1])
    if expected.size:
        np.testing.assert_allclose(samples, expected, atol=1e-4)


def long_silence() -> bytes:
    """A stage's own sound, longer than a request's may be: 24 minutes of 8 bits at 48 kHz."""
    file = io.BytesIO()
    soundfile.write(file, np.zeros(sound.MAX_SAMPLES + 48_000, np.int16), 48_000, format="WAV", subtype="PCM_U8")
    return file.getvalue()


def test_a_stages_sound_is_converted_and_delivered_however_long_it_is() -> None:
    data = long_silence()
    with pytest.raises(RequestTooLarge):
        sound.decoded(data)
    assert encoded("audio", data) == [(data, "audio/wav")]
    converted = sound.converted(data, "flac")
    assert soundfile.info(io.BytesIO(converted)).frames == sound.MAX_SAMPLES + 48_000
