"""Video as files, by FFmpeg's libraries (PyAV): whether one can be decoded, its frames, and frames as mp4 with a sound."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Any

import av
import numpy as np

from omnibus.errors import EngineError, InvalidRequest, RequestTooLarge
from omnibus.media import av1, pictures, sound
from omnibus.media.containers import MAX_FRAME_PIXELS, Pipe, opened, reason, recognised
from omnibus.media.effort import Effort

MAX_FRAMES = 1 << 16
"""Frames of all videos of a request: 36 minutes at 30 a second."""
MAX_DECODED = 1 << 28
"""Pixels of all frames of one video that is decoded for a model: 0.8 GiB."""
MIN_FPS, MAX_FPS = 0.1, 1000.0
_AAC_AHEAD = 1024
"""Samples of silence that the encoder of AAC begins with, and players leave out where the file says so."""
_QUALITY = {"crf": "15", "preset": "medium"}
"""Options of the encoder: a loss that cannot be seen. Its threads change nothing of what it writes."""

_FRAGMENTS = "frag_every_frame+empty_moov+default_base_moof"
"""Options of a file whose frames can be played before those behind them are written."""


def length(data: bytes) -> int:
    """Frames that a file claims to hold, 0 where it does not say; raises InvalidRequest for no video."""
    with opened(data, "video") as container:
        return int(container.streams.video[0].frames)


def media_type(data: bytes) -> str:
    """The media type of a video by its first bytes; raises InvalidRequest for anything that is none."""
    return recognised(data, "video")[1].replace("audio/", "video/")


def dimensions(data: bytes) -> tuple[float, int, int]:
    """Seconds, width and height of a video, as its file says; raises InvalidRequest for no video."""
    with opened(data, "video") as container:
        stream = container.streams.video[0]
        return round((container.duration or 0) / av.time_base, 3), stream.width, stream.height


def thumbnail(data: bytes) -> bytes:
    """The frame in the middle of a video, as WebP; raises InvalidRequest for what cannot be decoded."""
    with opened(data, "video") as container:
        stream, middle, shown = container.streams.video[0], (container.duration or 0) // 2, None
        _check_size(stream)
        try:
            container.seek(middle)  # the key frame before it
            for shown in container.decode(stream):
                if shown.time is None or shown.time * av.time_base >= middle:
                    break
        except (av.FFmpegError, ValueError) as error:
            raise InvalidRequest(f"the video cannot be decoded: {reason(error)}") from error
        if shown is None:
            raise InvalidRequest("the video is empty")
        return pictures.converted(pictures.encoded(shown.to_ndarray(format="rgb24")), "webp")


def frames(data: bytes, most: int = MAX_FRAMES) -> tuple[np.ndarray, float]:
    """The frames of a video, uint8 (F, H, W, 3), and how many are shown a second.

    Raises InvalidRequest for what cannot be decoded, RequestTooLarge beyond `most` frames or MAX_DECODED pixels.
    """
    shown, pixels = list[np.ndarray](), 0
    with opened(data, "video") as container:
        stream = container.streams.video[0]
        rate = float(stream.average_rate or 0)
        try:
            for frame in container.decode(stream):
                _check_size(frame)
                pixels += frame.width * frame.height
                if len(shown) == most or pixels > MAX_DECODED:
                    raise RequestTooLarge(
                        f"a video for a model may have {most} frames, and {MAX_DECODED} pixels in all"
                    )
                shown.append(frame.to_ndarray(format="rgb24"))
            return np.stack(shown), rate
        except (av.FFmpegError, ValueError) as error:  # also of no frame, or of frames of several sizes
            raise InvalidRequest(f"the video cannot be decoded: {reason(error)}") from error


def rest(data: bytes, after: int) -> tuple[np.ndarray, float]:
    """The frames behind the first ones, maybe none, and how many are shown a second; raises as `frames`, for what is behind."""
    shown, pixels = list[np.ndarray](), 0
    with opened(data, "video") as container:
        stream = container.streams.video[0]
        try:
            for number, frame in enumerate(container.decode(stream)):
                if number < after:
                    continue
                pixels += frame.width * frame.height
                if pixels > MAX_DECODED:
                    raise RequestTooLarge(f"a video has more than {MAX_DECODED} pixels behind frame {after}")
                shown.append(frame.to_ndarray(format="rgb24"))
            return np.array(shown, np.uint8), float(stream.average_rate or 0)
        except (av.FFmpegError, ValueError) as error:
            raise InvalidRequest(f"the video cannot be decoded: {reason(error)}") from error


def encoded(pictures: np.ndarray, fps: float, heard: tuple[np.ndarray, int] | None = None) -> bytes:
    """The mp4 file (H.264) of frames, uint8 (F, H, W, 3); `heard` is its sound (AAC): samples, as of `sound.encoded`, and rate.

    Raises EngineError for what cannot be a video.
    """
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[-1] != 3 or not pictures.size:
        raise EngineError(f"a video must be uint8 of shape (F, H, W, 3), not {pictures.dtype} {pictures.shape}")
    if not MIN_FPS <= fps <= MAX_FPS:
        raise EngineError(f"a video has {MIN_FPS:g} to {MAX_FPS:g} frames a second, not {fps:g}")
    file, (height, width) = io.BytesIO(), pictures.shape[1:3]
    try:
        with av.open(file, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
            stream = _track(container, width, height, fps, _QUALITY)
            packets = () if heard is None else _sound_packets(container, *heard)
            for picture in pictures:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
            for packet in packets:
                container.mux(packet)
    except (av.FFmpegError, ValueError, OverflowError) as error:
        raise EngineError(f"a video of {width}x{height} cannot be written: {reason(error)}") from error
    return file.getvalue()


class VideoEncoder:
    """Writes a video as an mp4 file while it is made, a fragment a frame: blocks while it encodes, for one thread at a time."""

    def __init__(self, width: int, height: int, fps: float) -> None:
        """Raises EngineError for what cannot be a video."""
        self._size, self._pipe = (height, width), Pipe()
        options = {"fflags": "+bitexact", "flush_packets": "1", "movflags": _FRAGMENTS}
        try:
            self._container: Any = av.open(self._pipe, "w", format="mp4", options=options)
            self._stream = _track(self._container, width, height, fps, {**_QUALITY, "tune": "zerolatency"})
        except (av.FFmpegError, ValueError, OverflowError) as error:
            raise self._failed(error) from error

    def write(self, pictures: np.ndarray) -> bytes:
        """The bytes that the next frames bring, (F, height, width, 3): those of the last one wait for another."""
        try:
            for picture in pictures:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                self._container.mux(self._stream.encode(frame))
        except (av.FFmpegError, ValueError) as error:
            raise self._failed(error) from error
        return self._pipe.taken()

    def end(self) -> bytes:
        """The rest of the file; nothing can be written any more."""
        try:
            self._container.mux(self._stream.encode(None))
            self._container.close()
        except (av.FFmpegError, ValueError) as error:
            raise self._failed(error) from error
        return self._pipe.taken()

    def _failed(self, error: Exception) -> EngineError:
        height, width = self._size
        return EngineError(f"a video of {width}x{height} cannot be written: {reason(error)}")


def _track(container: Any, width: int, height: int, fps: float, options: dict[str, str]) -> Any:
    """A new track of a container for frames of this size."""
    rate: Any = Fraction(fps).limit_denominator(1001)
    stream: Any = container.add_stream("libx264", rate=rate, options=options)
    stream.width, stream.height = width, height
    # Players want one colour for two pixels on either side, which odd sides do not allow.
    stream.pix_fmt = "yuv444p" if width % 2 or height % 2 else "yuv420p"
    return stream


def _sound_packets(container: Any, samples: np.ndarray, rate: int) -> list[Any]:
    """The packets of a new track of a container; raises EngineError as `sound.encoded`."""
    source: Any = av.open(io.BytesIO(sound.encoded(samples, rate, "aac")), format="aac")
    with source:
        made = source.streams.audio[0]
        track = container.add_stream_from_template(made)
        packets = [packet for packet in source.demux() if packet.dts is not None]
        ahead = round(_AAC_AHEAD / made.rate / made.time_base)
    for packet in packets:
        packet.pts, packet.dts, packet.stream = packet.pts - ahead, packet.dts - ahead, track
    return packets


def check(data: bytes, most: int, effort: Effort) -> int:
    """Read all of a video and decode its first key frame, and more as the effort allows; returns its frames.

    Raises InvalidRequest for what cannot be decoded or holds nothing, RequestTooLarge for more than `most` frames, or larger
    ones than MAX_FRAME_PIXELS.
    """
    frames = decoded = 0
    with opened(data, "video") as container:
        stream = container.streams.video[0]
        _check_size(stream)
        try:
            for packet in container.demux(stream):
                effort.poll()
                frames += packet.size > 0
                if frames > most:
                    raise RequestTooLarge(f"the video has more than {most} frames")
                if stream.codec_context.codec.canonical_name == "av1":
                    av1.check_packet(bytes(packet))
                # The empty packet at the end has the decoder hand out what it holds back.
                if (effort.video_pixels > 0 or not decoded) and (packet.is_keyframe or not packet.size):
                    for frame in packet.decode():
                        _check_size(frame)
                        decoded += 1
                        effort.video_pixels -= frame.width * frame.height
        except (av.FFmpegError, ValueError) as error:
            raise InvalidRequest(f"the video cannot be decoded: {reason(error)}") from error
    if not decoded:
        raise InvalidRequest("the video is empty")
    return frames


def _check_size(image: Any) -> None:
    if image.width * image.height > MAX_FRAME_PIXELS:
        raise RequestTooLarge(f"a frame of a video may have {MAX_FRAME_PIXELS} pixels")
