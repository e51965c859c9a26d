"""The files of a request are decoded before it is admitted, within bounds that hold for all of them together."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from omnibus.errors import DeadlineExceeded, InvalidRequest, Overloaded, RequestTooLarge
from omnibus.media import effort, pictures, sound, video
from omnibus.media.effort import Effort
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


_RECORDED = Path(__file__).parents[1] / "support" / "clip_vp8.webm"
"""24 frames of 64x64: libvpx, which makes it, once did not return."""


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
            shape = (side, side, 3)
            pixels = noise.integers(256, size=shape, dtype=np.uint8) if side < 500 else np.zeros(shape, np.uint8)
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
    "mp4 h264": clip(codec="libx264"),
    "mp4 av1": clip(codec="libsvtav1"),
    "mov": clip("mov"),
    "webm": VideoPart(data=_RECORDED.read_bytes()),
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


def _unknown_codec(data: bytes) -> bytes:
    if data.startswith(b"RIFF"):
        return data[:20] + b"\x33\x33" + data[22:]
    return data.replace(b"avc1", b"zzzz")


def _junk(_: bytes) -> bytes:
    return b"junk"


@pytest.mark.parametrize(
    ("name", "damaged"),
    [
        *((name, _junk) for name in ("picture PNG", "sound FLAC", "mp4")),
        *((name, _half) for name in ("picture PNG", "picture JPEG", "picture WEBP", "picture TIFF", "mp4", "mov")),
        *((name, _unknown_codec) for name in ("sound WAV", "mp4 h264")),
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
    places, over = threading.BoundedSemaphore(1), threading.Event()
    monkeypatch.setattr(request_files, "_PLACES", places)
    monkeypatch.setattr(request_files, "check_decodable", lambda *_: over.wait(30.0))
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
    over.set()
    assert await asyncio.to_thread(places.acquire, timeout=30.0)  # or its thread would free a place of the next test


def test_videos_share_what_may_be_decoded_when_a_request_has_several(monkeypatch: pytest.MonkeyPatch) -> None:
    real, frame, decoded = video.check, 64 * 64, list[int]()

    def noted(data: bytes, most: int, able: Effort) -> int:
        before = able.video_pixels
        try:
            return real(data, most, able)
        finally:
            decoded.append((before - able.video_pixels) // frame)

    monkeypatch.setattr(video, "check", noted)
    monkeypatch.setattr(effort, "DECODED_PIXELS", 3 * frame)
    check_decodable(chat(*[clip("avi", frames=72)] * 3))  # six key frames and more
    assert decoded == [3, 1, 1]


def test_too_large_when_a_request_has_too_many_files() -> None:
    check_decodable(chat(*[image()] * 64))
    with pytest.raises(RequestTooLarge) as caught:
        check_decodable(chat(*[image()] * 65))
    assert caught.value.param == "messages[1].content[65].image"


CHECKS = {
    "picture": partial(pictures.check, GOOD["picture PNG"].data, 1 << 20),
    "sound": partial(sound.check, GOOD["sound FLAC"].data, 1 << 20),
    "video": partial(video.check, GOOD["mp4"].data, 1 << 20),
}


@pytest.mark.parametrize("kind", CHECKS)
def test_a_check_ends_when_its_time_is_over_or_nobody_waits_for_it(kind: str) -> None:
    CHECKS[kind](Effort(60.0))
    with pytest.raises(RequestTooLarge, match="too long to decode"):
        CHECKS[kind](Effort(-1.0))
    with pytest.raises(DeadlineExceeded):
        CHECKS[kind](Effort(60.0, lambda: True))


def test_too_large_when_the_files_take_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_files, "MAX_SECONDS", -1.0)
    with pytest.raises(RequestTooLarge, match="too long to decode") as caught:
        check_decodable(chat(image()))
    assert caught.value.param == f"{SECOND_PART}.image"


async def test_a_check_stops_when_its_caller_leaves_and_others_are_refused_while_too_many_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(request_files, "_PLACES", threading.BoundedSemaphore(1))
    real, begun, ended = check_decodable, threading.Event(), threading.Event()

    def endless(messages: list[Message], is_left: Callable[[], bool]) -> None:
        begun.set()
        try:
            while True:
                real(messages, is_left)
        finally:
            ended.set()

    request = Request(messages=tuple(chat(image())))
    with monkeypatch.context() as while_endless:
        while_endless.setattr(request_files, "check_decodable", endless)
        first = asyncio.create_task(check_files(request, within=60.0))
        assert await asyncio.to_thread(begun.wait, 30.0)
    with pytest.raises(Overloaded):
        await check_files(request, within=60.0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await asyncio.to_thread(ended.wait, 30.0)
    assert await asyncio.to_thread(request_files._PLACES.acquire, timeout=30.0)  # its place is free again
    request_files._PLACES.release()
    await check_files(request, within=60.0)


def test_large_pictures_are_decoded_one_at_a_time_when_threads_check_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_LARGE", 30 * 30)
    with ThreadPoolExecutor(1) as threads:
        with pictures._ONE_LARGE:
            large = threads.submit(check_decodable, chat(image(40)))
            check_decodable(chat(image(20)))
            with pytest.raises(TimeoutError):
                large.result(0.2)
        large.result(30.0)


@pytest.mark.parametrize("kind", ["GIF", "JPEG2000", "TIFF", "WEBP"])
def test_too_large_when_a_picture_is_beyond_the_bound_of_formats_that_take_more_memory(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "MAX_PIXELS", 100 * 100)
    check_decodable(chat(image(70, kind)))
    check_decodable(chat(image(99, "PNG")))
    with pytest.raises(RequestTooLarge):
        check_decodable(chat(image(72, kind)))


RESIDENT = """if True:
    import re, sys
    from pathlib import Path
    from omnibus.errors import RequestError
    from omnibus.media import video
    from omnibus.media.effort import Effort
    def most():  # resource.getrusage counts what the parent had at the fork
        return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
    data = Path(sys.argv[1]).read_bytes()
    before = most()
    try:
        video.check(data, 9, Effort(60))
    except RequestError:
        print(most() - before - len(data))
"""
"""Prints how many bytes more than a video's own a process has resident at most when it refuses it."""


def resident(data: bytes, folder: Path) -> int:
    (folder / "video").write_bytes(data)
    run = subprocess.run([sys.executable, "-c", RESIDENT, folder / "video"], check=True, capture_output=True, text=True)
    return int(run.stdout)


def test_a_frame_is_not_unpacked_when_it_is_refused_for_its_size(tmp_path: Path) -> None:
    most = 8192 * 8192 * 3 // 2  # bytes of the frame alone
    assert resident(clip("mp4", "libx264", frames=1, side=8192).data, tmp_path) < most


def av1(shown: Callable[[list[bytes]], bytes], side: int = 64, frames: int = 24) -> bytes:
    """A video of one packet that is made from the packets of another."""
    file, grey = io.BytesIO(), av.VideoFrame(side, side, "yuv420p")
    with av.open(io.BytesIO(), "w", "mp4") as unused, av.open(file, "w", "mp4") as out:
        encoder = unused.add_stream("libsvtav1", rate=12)
        encoder.width, encoder.height, encoder.pix_fmt = side, side, "yuv420p"  # type: ignore[attr-defined]
        packets = [packet for at in range(frames) for packet in encoder.encode(_at(grey, at))] + encoder.encode(None)  # type: ignore[attr-defined]
        packet = av.Packet(shown([bytes(packet) for packet in packets]))
        packet.stream, packet.pts, packet.dts = out.add_stream_from_template(encoder), 0, 0
        packet.is_keyframe = True
        out.mux(packet)
    return file.getvalue()


def _at(frame: av.VideoFrame, at: int) -> av.VideoFrame:
    frame.pts = at
    return frame


def _all_frames(packets: list[bytes]) -> bytes:
    return b"".join(packets)


def _one_frame_again_and_again(packets: list[bytes]) -> bytes:
    return packets[0] + b"\x1a\x01\x88" * 200_000  # units that show a frame which was decoded before


def _empty_units(packets: list[bytes]) -> bytes:
    return packets[0] + b"\x2a\x00" * 200_000  # of metadata


@pytest.mark.parametrize("shown", [_all_frames, _one_frame_again_and_again, _empty_units])
def test_nothing_is_unpacked_when_a_packet_of_av1_holds_many_frames(
    shown: Callable[[list[bytes]], bytes], tmp_path: Path
) -> None:
    side, frames = (1024, 60) if shown is _all_frames else (64, 2)
    data = av1(shown, side, frames)
    with pytest.raises(InvalidRequest, match="more than one frame"):
        check_decodable(chat(VideoPart(data=data)))
    assert resident(data, tmp_path) < 32 << 20


def test_a_file_is_refused_when_its_packet_of_av1_is_cut_off() -> None:
    check_decodable(chat(VideoPart(data=av1(lambda packets: packets[0]))))
    for cut in (1, 2, 3, 9):
        with pytest.raises(InvalidRequest):
            check_decodable(chat(VideoPart(data=av1(lambda packets, cut=cut: packets[0][:cut]))))


def test_a_video_is_refused_with_its_codec_when_that_is_none_of_the_known_ones() -> None:
    with pytest.raises(InvalidRequest, match="'snow' is not taken"):
        check_decodable(chat(clip("avi", "snow")))
