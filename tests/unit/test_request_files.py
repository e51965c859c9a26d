"""The files of a request are decoded before it is admitted, within bounds that hold for all of them together."""

from __future__ import annotations

import asyncio
import io
import time
import tracemalloc
from collections.abc import Callable

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from omnibus.errors import DeadlineExceeded, InvalidRequest, RequestTooLarge
from omnibus.media import sound, video
from omnibus.requests import request_files
from omnibus.requests.request_files import check_decodable, check_files
from omnibus.wire.request import AudioPart, ImagePart, Message, Request, TextPart, VideoPart

pytestmark = pytest.mark.unit
SECOND_PART = "messages[1].content[1]"


def image(side: int = 4, kind: str = "PNG", mode: str = "RGB") -> ImagePart:
    noise = np.random.default_rng(0).integers(256, size=(side, side, 3), dtype=np.uint8)
    picture = Image.fromarray(noise) if side < 500 else Image.new("RGB", (side, side))
    file = io.BytesIO()
    picture.convert(mode).save(file, kind)
    return ImagePart(data=file.getvalue())


def audio(frames: int = 4800, kind: str = "FLAC") -> AudioPart:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(-9999, 9999, size=frames, dtype=np.int16)
    soundfile.write(file, noise, 48_000, format=kind)
    return AudioPart(data=file.getvalue())


def clip(container: str = "mp4", codec: str = "mpeg4", frames: int = 24, side: int = 64) -> VideoPart:
    file = io.BytesIO()
    noise = np.random.default_rng(0)
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=12)
        stream.width = stream.height = side  # type: ignore[attr-defined]
        stream.pix_fmt = "yuv420p"  # type: ignore[attr-defined]
        for _ in range(frames):
            pixels = noise.integers(256, size=(side, side, 3), dtype=np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))  # type: ignore[attr-defined]
        out.mux(stream.encode(None))  # type: ignore[attr-defined]
    return VideoPart(data=file.getvalue())


def chat(*parts: ImagePart | AudioPart | VideoPart) -> list[Message]:
    return [Message(role="system", content="look"), Message(role="user", content=(TextPart(text="and say"), *parts))]


GOOD = {
    **{f"picture {kind}": image(64, kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")},
    "grey jpeg": image(64, "JPEG", "L"),
    "cmyk jpeg": image(64, "JPEG", "CMYK"),
    **{f"sound {kind}": audio(kind=kind) for kind in ("FLAC", "WAV", "OGG", "MP3")},
    "mp4": clip(),
    "mov": clip("mov"),
    "webm": clip("webm", "libvpx"),
    "mkv": clip("matroska"),
    "avi": clip("avi"),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_file_passes_when_it_can_be_decoded(name: str) -> None:
    check_decodable(chat(GOOD[name]))


def _half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _no_content(data: bytes) -> bytes:
    return data[:60] + bytes(len(data) - 60)


def _junk(_: bytes) -> bytes:
    return b"junk"


@pytest.mark.parametrize(
    ("name", "damaged"),
    [
        *((name, _junk) for name in ("picture PNG", "sound FLAC", "mp4")),
        *((name, _half) for name in ("picture PNG", "picture JPEG", "picture WEBP", "picture TIFF", "mp4", "mov")),
        *((name, _no_content) for name in ("picture PNG", "picture JPEG", "sound FLAC", "sound MP3", "mp4", "webm")),
    ],
)
def test_a_file_is_refused_with_its_place_when_it_cannot_be_decoded(
    name: str, damaged: Callable[[bytes], bytes]
) -> None:
    part = GOOD[name]
    kind = {ImagePart: "image", AudioPart: "audio", VideoPart: "video"}[type(part)]
    with pytest.raises(InvalidRequest) as caught:
        check_decodable(chat(type(part)(data=damaged(part.data))))
    assert caught.value.param == f"{SECOND_PART}.{kind}"


@pytest.mark.parametrize(
    "part",
    [ImagePart(data=audio().data), AudioPart(data=image().data), VideoPart(data=audio(kind="MP3").data)],
    ids=["sound as picture", "picture as sound", "sound as video"],
)
def test_a_file_is_refused_when_it_is_of_another_kind(part: ImagePart | AudioPart | VideoPart) -> None:
    with pytest.raises(InvalidRequest):
        check_decodable(chat(part))


def test_too_large_when_the_pictures_together_are_beyond_the_bound() -> None:
    half = image(6000)  # 36 megapixels in 100 KB
    check_decodable(chat(half))
    with pytest.raises(RequestTooLarge) as caught:
        check_decodable(chat(image(), half, half))
    assert caught.value.param == "messages[1].content[3].image"


def test_too_large_when_the_sounds_together_are_beyond_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sound, "MAX_SAMPLES", 1000)
    check_decodable(chat(audio(600)))
    with pytest.raises(RequestTooLarge) as caught:
        check_decodable(chat(audio(600), audio(600)))
    assert caught.value.param == "messages[1].content[2].audio"


def test_too_large_when_the_videos_together_are_beyond_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "MAX_FRAMES", 40)
    check_decodable(chat(clip(frames=24)))
    with pytest.raises(RequestTooLarge) as caught:
        check_decodable(chat(clip(frames=24), clip(frames=24)))
    assert caught.value.param == "messages[1].content[2].video"


def test_too_large_when_the_frames_of_a_video_are_beyond_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "MAX_FRAME_PIXELS", 64 * 64 - 1)
    with pytest.raises(RequestTooLarge):
        check_decodable(chat(clip(side=64)))


def test_nothing_is_unpacked_when_the_files_together_claim_too_much() -> None:
    messages = chat(*[image(3000)] * 8)
    tracemalloc.start()
    try:
        with pytest.raises(RequestTooLarge):
            check_decodable(messages)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


async def test_the_loop_goes_on_and_the_deadline_counts_when_files_take_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_files, "check_decodable", lambda _: time.sleep(1.0))
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticking = asyncio.create_task(tick())
    with pytest.raises(DeadlineExceeded):
        await check_files(Request(messages=tuple(chat(image()))), within=0.3)
    ticking.cancel()
    assert ticks > 5
