"""The files of a request as arguments of a pipeline: which parameter each is for, decoded. Work for a thread."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from omnibus.errors import EngineError, EngineRejected
from omnibus.media import sound, video
from omnibus.requests.request_files import naming
from omnibus.wire.request import AudioPart, ImagePart, Message, VideoPart, media_parts
from omnibus.workers.engines import media
from omnibus.workers.engines.diffusers.signature import MASK, PipelineShape

Part = ImagePart | AudioPart | VideoPart
_KINDS: Mapping[type[Part], str] = {ImagePart: "image", AudioPart: "audio", VideoPart: "video"}


def has_files(messages: Sequence[Message] | None) -> bool:
    """Whether there is anything to decode."""
    return messages is not None and next(media_parts(messages), None) is not None


def of_messages(messages: Iterable[Message], pipeline: PipelineShape) -> dict[str, Any]:
    """Arguments by parameter, of the files of a chat; raises EngineRejected, naming the file, for one that it does not take."""
    parts = [(where, _parameter(part, where, pipeline), part) for where, part in media_parts(messages)]
    given: dict[str, list[Any]] = defaultdict(list)
    for where, parameter, part in parts:
        if given[parameter] and not pipeline.takes_several(parameter):
            others = ", ".join(name for kind in ("image", MASK) for name in pipeline.media(kind) if name not in given)
            hint = f"; name what it is for by `argument`: {others}" if others else ""
            raise EngineRejected(f"{pipeline.name} takes one file as {parameter!r}{hint}", param=where)
        given[parameter].append(_decoded(part, where, parameter, pipeline))
    return _arguments(given, pipeline)


def of_values(values: Mapping[str, Any], pipeline: PipelineShape) -> dict[str, Any]:
    """Arguments by parameter, of what an earlier stage made or an input processor gives; raises EngineRejected."""
    given: dict[str, list[Any]] = {}
    for name, parameter, kind in _named(values, pipeline):
        try:
            array = np.asarray(values[name])
            found = [_sound(values, array, name, pipeline)] if kind == "audio" else _pictures(array, kind)
        except (TypeError, ValueError) as error:
            raise EngineRejected(f"{name}: {error}", param=name) from error
        if len(found) != 1 and not pipeline.takes_several(parameter):
            raise EngineRejected(f"{pipeline.name} takes one file as {parameter!r}, not {len(found)}", param=name)
        given[parameter] = found
    return _arguments(given, pipeline)


def names_of_values(values: Mapping[str, Any], pipeline: PipelineShape) -> frozenset[str]:
    """The names that `of_values` reads."""
    named = [(name, kind) for name, _, kind in _named(values, pipeline)]
    beside = {"audio": {"sample_rate"}, "video": {"fps"}}
    return frozenset(name for name, _ in named).union(*(beside.get(kind, set()) for _, kind in named))


def _named(values: Mapping[str, Any], pipeline: PipelineShape) -> Iterator[tuple[str, str, str]]:
    """Each value that is a file: its name, its parameter and its kind. A kind's name stands for its first parameter."""
    for kind in ("image", MASK, "video", "audio"):
        parameters = pipeline.media(kind)
        for name in values:
            if name in parameters:
                yield name, name, kind
            elif name == kind and parameters:
                yield name, parameters[0], kind


def _parameter(part: Part, where: str, pipeline: PipelineShape) -> str:
    kind = _KINDS[type(part)]
    own, masks = pipeline.media(kind), pipeline.media(MASK) if kind == "image" else ()
    if part.argument is None and own:
        return own[0]
    if part.argument in (*own, *masks):
        return str(part.argument)
    if part.argument == MASK and masks:
        return masks[0]
    known = ", ".join((*own, *masks)) or "none"
    what = kind if part.argument is None else f"{kind} as {part.argument!r}; it takes: {known}"
    raise EngineRejected(f"{pipeline.name} takes no {what}", param=where)


def _decoded(part: Part, where: str, parameter: str, pipeline: PipelineShape) -> Any:
    if isinstance(part, ImagePart):
        picture = media.decode_image(part, where, as_mask=parameter in pipeline.media(MASK))
        if picture.width * picture.height > pipeline.max_pixels:
            raise EngineRejected(f"an image may have {pipeline.max_pixels} pixels", param=where)
        return picture
    if isinstance(part, VideoPart):
        with naming(where):
            return [Image.fromarray(frame) for frame in video.frames(part.data, pipeline.max_frames)[0]]
    samples, rate = media.decode_audio(part, where)
    return _at_rate(samples.T, rate, where, pipeline)


def _sound(values: Mapping[str, Any], array: np.ndarray, name: str, pipeline: PipelineShape) -> np.ndarray:
    try:
        rate = int(values.get("sample_rate") or 0)
        return _at_rate(sound.planes(array, rate), rate, name, pipeline)
    except (EngineError, OverflowError) as error:
        raise EngineRejected(f"{name}: {error}", param=name) from error


def _pictures(array: np.ndarray, kind: str) -> list[Any]:
    least = 4 if kind == "video" else 2 if kind == MASK else 3
    if array.dtype != np.uint8 or array.ndim not in (least, least + 1):
        raise ValueError(f"it must be uint8 of {least} dimensions, or one more, not {array.dtype} {array.shape}")
    several = array if array.ndim > least else array[None]
    if kind == "video":
        return [[Image.fromarray(frame) for frame in one] for one in several]
    return [Image.fromarray(one) for one in several]


def _at_rate(samples: np.ndarray, rate: int, where: str, pipeline: PipelineShape) -> np.ndarray:
    """Samples (channels, frames) at the rate of the pipeline's own sound; raises EngineRejected for one that names none."""
    if not pipeline.sample_rate:
        raise EngineRejected(f"{pipeline.name} does not say at which rate it takes a sound", param=where)
    if rate == pipeline.sample_rate:
        return samples
    return sound.decoded(sound.encoded(samples, rate, "wav", at=pipeline.sample_rate))[0]


def _arguments(given: Mapping[str, list[Any]], pipeline: PipelineShape) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        name: files if pipeline.takes_several(name) else files[0] for name, files in given.items()
    }
    if "initial_audio_waveforms" in arguments:  # of Stable Audio, which takes a batch of them
        waves: np.ndarray = arguments["initial_audio_waveforms"]
        arguments |= {"initial_audio_waveforms": waves[None], "initial_audio_sampling_rate": pipeline.sample_rate}
    return arguments
