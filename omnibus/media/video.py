"""Video as files, by FFmpeg's libraries (PyAV): whether one can be decoded. Nothing here converts any."""

from __future__ import annotations

from typing import Any

import av

from omnibus.errors import InvalidRequest, RequestTooLarge
from omnibus.media import av1
from omnibus.media.containers import MAX_FRAME_PIXELS, opened, reason
from omnibus.media.effort import Effort

MAX_FRAMES = 1 << 16
"""Frames of all videos of a request: 36 minutes at 30 a second."""


def length(data: bytes) -> int:
    """Frames that a file claims to hold, 0 where it does not say; raises InvalidRequest for no video."""
    with opened(data, "video") as container:
        return int(container.streams.video[0].frames)


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
