"""A final output as files: labelled by what they are, whatever was claimed. Blocks while it encodes and checks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import zip_longest
from typing import Any

import msgspec

from omnibus.errors import EngineError, RequestError, RequestTooLarge
from omnibus.wire import codec
from omnibus.wire.lazy_numpy import np
from omnibus.wire.payload import BYTES, JSON, MP4, PNG, TEXT, WAV

MAX_FILES = 1024
"""Files of one output: each is named in the request's record."""
File = tuple[bytes, str]
"""Content and media type."""


def encoded(modality: str, value: Any, sample_rate: Any = None, *, fps: Any = None, heard: Any = None) -> list[File]:
    """Each item of a final output; raises EngineError for one that is empty, or not what its modality says.

    Text from a str. Images from files, uint8 arrays (H, W), (H, W, C) or (n, H, W, C), or Pillow's; arrays leave as PNG.
    Audio from files, samples with a rate, or a mapping of `samples` and `sample_rate`; samples leave as WAV. Video from files,
    or uint8 arrays (F, H, W, 3) or (n, F, H, W, 3) with `fps`, which leave as MP4 with the sound that is `heard`, one for each.
    Lists of these, one item each, RequestTooLarge beyond MAX_FILES. Of any other modality bytes and texts as they are, anything
    else as JSON.
    """
    if modality == "text":
        if not isinstance(value, str):
            raise EngineError(f"a text is a str, not {type(value).__name__}")
        return [(value.encode(), TEXT)]
    is_many = isinstance(value, list) or getattr(value, "ndim", 0) == (5 if modality == "video" else 4)
    count = len(value) if is_many else 1
    if modality in ("image", "audio", "video") and count > MAX_FILES:
        raise RequestTooLarge(f"{count} files; an answer may hold {MAX_FILES}")
    if modality == "image":
        return _alike(_pictures(value), PNG)
    if modality == "audio":
        return _alike(_sounds(value, sample_rate), WAV)
    if modality == "video":
        sounds = heard if isinstance(heard, list) else [heard] * (heard is not None)
        return _alike(_videos(value, fps, [samples_of(one, sample_rate) for one in sounds]), MP4)
    if isinstance(value, bytes):
        return [(value, BYTES)]
    return [(value.encode(), TEXT)] if isinstance(value, str) else [(to_json(value), JSON)]


def to_json(value: Any) -> bytes:
    """JSON of a value, arrays, tensors and numpy's numbers among them; raises EngineError."""
    try:
        return msgspec.json.encode(value, enc_hook=_plain)
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise EngineError(f"it cannot be sent as text or JSON: {error}") from error


def _pictures(value: Any) -> list[File]:
    from omnibus.media import pictures  # noqa: PLC0415 only stages with pictures load its libraries

    if isinstance(value, list):
        return [file for one in value for file in _pictures(one)]
    if isinstance(value, bytes):
        return [(value, _readable(pictures.shown, pictures.media_type, value))]
    pixels = codec.host_array(value)
    return [(pictures.encoded(one), PNG) for one in (pixels if pixels.ndim == 4 else [pixels])]


def _sounds(value: Any, sample_rate: Any) -> list[File]:
    from omnibus.media import sound  # noqa: PLC0415 only stages with sound load its libraries

    if isinstance(value, list):
        return [file for one in value for file in _sounds(one, sample_rate)]
    if isinstance(value, bytes):
        return [(value, _readable(sound.check, sound.media_type, value))]
    return [(sound.encoded(*samples_of(value, sample_rate)), WAV)]


def _videos(value: Any, fps: Any, sounds: Sequence[tuple[np.ndarray, int]]) -> list[File]:
    from omnibus.media import effort, video  # noqa: PLC0415 only stages with video load its libraries

    if isinstance(value, bytes):
        check = partial(video.check, most=video.MAX_FRAMES, effort=effort.Effort(math.inf))
        return [(value, _readable(check, video.media_type, value))]
    if isinstance(value, list):
        pairs = zip_longest(value, sounds[: len(value)])
        return [file for one, heard in pairs for file in _videos(one, fps, [] if heard is None else [heard])]
    frames = codec.host_array(value)
    if frames.ndim == 5:
        return _videos(list(frames), fps, sounds)
    try:
        return [(video.encoded(frames, float(fps), next(iter(sounds), None)), MP4)]
    except (TypeError, ValueError) as error:
        raise EngineError(f"a video has frames and their fps, frames a second, not {fps!r}") from error


def samples_of(value: Any, sample_rate: Any) -> tuple[np.ndarray, int]:
    """The samples of a sound and their rate, from a mapping of both or side by side; raises EngineError without a rate."""
    if isinstance(value, Mapping):
        value, sample_rate = value.get("samples"), value.get("sample_rate")
    try:
        return codec.host_array(value), int(sample_rate)
    except (TypeError, ValueError, OverflowError) as error:
        raise EngineError(f"a sound has samples and their sample_rate in Hz, not {sample_rate!r}") from error


def _readable(read: Any, media_type: Any, data: bytes) -> str:
    """The media type of a file that can be read to its end: it will be converted to what its caller asks for."""
    try:
        read(data)
        return str(media_type(data))
    except RequestError as error:
        raise EngineError(f"{len(data)} bytes are no such file: {error.message}") from error


def _alike(files: list[File], common: str) -> list[File]:
    """The files in one format, `common` where they came in several: an output has one media type."""
    if not files:
        raise EngineError("it is empty")
    if len({kind for _, kind in files}) == 1:
        return files
    if common == MP4:
        raise EngineError("its videos have several formats: return them in one")
    from omnibus.media import pictures, sound  # noqa: PLC0415 as above

    convert = pictures.converted if common == PNG else sound.converted
    return [(convert(data, common.partition("/")[-1]), common) for data, _ in files]


def _plain(value: Any) -> Any:
    if hasattr(value, "__dlpack__"):  # numpy's arrays, and tensors
        return codec.host_array(value).tolist()
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a {type(value).__name__} has no JSON form")
