"""Containers of sound and video, opened by FFmpeg's libraries (PyAV): recognised by their first bytes, from an allow-list."""

from __future__ import annotations

import io
from typing import Any, Literal

import av

from omnibus.errors import InvalidRequest

_SIGNATURES = (
    (0, b"fLaC", "flac", "audio/flac"),
    (0, b"OggS", "ogg", "audio/ogg"),
    (4, b"ftyp", "mp4", "audio/mp4"),
    (0, b"\x1aE\xdf\xa3", "matroska", "audio/webm"),
    (0, b"ID3", "mp3", "audio/mpeg"),
    (0, b"caff", "caf", "audio/x-caf"),
    (0, b"#!AMR", "amr", "audio/amr"),
    (8, b"WAVE", "wav", "audio/wav"),
    (8, b"AIFF", "aiff", "audio/aiff"),
    (8, b"AIFC", "aiff", "audio/aiff"),
    (8, b"AVI ", "avi", "video/x-msvideo"),
)
"""Offset, bytes, FFmpeg's demuxer, media type. Invariant: no demuxer that opens other files or addresses (HLS, concat, SDP)."""
MAX_FRAME_PIXELS = 1 << 24
"""Pixels of a frame of video: a decoder keeps a dozen and more of them."""
_DECODER = {"max_pixels": str(MAX_FRAME_PIXELS + (1 << 22)), "threads": "1"}
"""Options of every decoder, FFmpeg's own at opening, too. It counts a frame with its padding: up to 63 columns."""
_UNPARSED = {"fflags": "noparse+nofillin"}
"""Packets of video as they lie in the file. Invariant: the parser of AV1 never runs: it takes a kilobyte for each three bytes."""
_CODECS = frozenset(
    {"av1", "h263", "h264", "hevc", "mjpeg", "mpeg1video", "mpeg2video", "mpeg4", "theora", "vp8", "vp9"}
    | {"dvvideo", "ffv1", "flv1", "huffyuv", "msmpeg4v2", "msmpeg4v3", "png", "prores", "rawvideo", "wmv1", "wmv2"}
)
"""Codecs of video. Invariant: none that is parsed as AV1 is by FFmpeg, while it is decoded, such as VVC."""
_OF_VIDEO = frozenset({"ogg", "mp4", "matroska", "avi"})
_KNOWN = {
    "audio": "a sound in one of the formats wav, mp3, flac, ogg (opus, vorbis), m4a, webm, aac, aiff, caf, amr",
    "video": "a video in one of the formats mp4, mov, webm, mkv, avi, ogg",
}


def recognised(data: bytes, kind: Literal["audio", "video"]) -> tuple[str, str]:
    """FFmpeg's demuxer and the media type of a file by its first bytes; raises InvalidRequest for anything that is none."""
    for offset, signature, demuxer, media_type in _SIGNATURES:
        if data.startswith(signature, offset) and (demuxer in _OF_VIDEO if kind == "video" else demuxer != "avi"):
            return demuxer, media_type
    if (
        kind == "audio" and len(data) > 3 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0
    ):  # a frame of MPEG audio; layer 0 is AAC
        return ("mp3", "audio/mpeg") if data[1] & 0x06 else ("aac", "audio/aac")
    raise InvalidRequest(f"not {_KNOWN[kind]}")


def opened(data: bytes, kind: Literal["audio", "video"]) -> Any:
    """An open container with a stream of this kind, for the caller to close; raises InvalidRequest."""
    demuxer, _ = recognised(data, kind)
    try:
        options = _DECODER if kind == "audio" else _DECODER | _UNPARSED
        container = av.open(io.BytesIO(data), format=demuxer, options=options, metadata_errors="ignore")
    except (av.FFmpegError, ValueError) as error:
        raise InvalidRequest(f"not {_KNOWN[kind]}: {reason(error)}") from error
    context = next((stream.codec_context for stream in getattr(container.streams, kind)), None)
    if context is None:  # no stream, or one whose codec FFmpeg does not know
        container.close()
        raise InvalidRequest(f"the file holds no {'sound' if kind == 'audio' else 'video'} that can be decoded")
    if kind == "video" and (codec := context.codec.canonical_name) not in _CODECS:
        container.close()
        raise InvalidRequest(f"a video of the codec {codec!r} is not taken, but one of {', '.join(sorted(_CODECS))}")
    context.options = _DECODER
    return container


def reason(error: Exception) -> str:
    """An error of a decoder in its own words."""
    return str(error.strerror if isinstance(error, av.FFmpegError) else error)


class Pipe:
    """A file that cannot be sought in, as FFmpeg sees it: it has no other method."""

    def __init__(self) -> None:
        self._written: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._written.append(bytes(data))
        return len(data)

    def taken(self) -> bytes:
        """Return the bytes written since the last call."""
        written, self._written = self._written, []
        return b"".join(written)
