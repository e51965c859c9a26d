"""A transcript as subtitles, SubRip and WebVTT. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from omnibus.wire.timed_text import TimedSegment


def srt(segments: Sequence[TimedSegment]) -> str:
    """The segments as a SubRip file."""
    cues = (
        f"{number}\n{_clock(one.start, ',')} --> {_clock(one.end, ',')}\n{_line(one.text)}\n"
        for number, one in enumerate(segments, 1)
    )
    return "\n".join(cues)


def vtt(segments: Sequence[TimedSegment]) -> str:
    """The segments as a WebVTT file."""
    cues = (f"{_clock(one.start, '.')} --> {_clock(one.end, '.')}\n{_escaped(one.text)}\n" for one in segments)
    return "\n".join(("WEBVTT\n", *cues))


def _clock(seconds: float, point: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"


def _line(text: str) -> str:
    """One line: an empty one would end the cue, and an arrow would begin its times."""
    return " ".join(text.split()).replace("-->", "->")


def _escaped(text: str) -> str:
    return _line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
