"""The checked request of one job to a diffusion pipeline: the rows it adds to a batch, and the batches it may join.

Pure but for the files of a request, which it decodes.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from omnibus.errors import EngineRejected
from omnibus.wire.request import Message, TextPart
from omnibus.workers.engines.diffusers import media_inputs
from omnibus.workers.engines.diffusers.signature import PipelineShape, is_mask, is_tensor
from omnibus.workers.engines.protocol import EngineInput, Job

MAX_SEED = 2**63 - 1
MAX_STEPS = 1000
_OF_NO_FILE = ("NoneType", "Input is in incorrect format")
"""How pipelines say that they were given None for a file; the second is of diffusers' image processor."""

_OF_SHAPES = re.compile(r"\b(size|shape|dimension|channel)s?\b")
"""How torch says that arrays do not fit together. Memory, libraries and threads fail as RuntimeErrors, too."""


class Stopped(Exception):
    """Nobody waits for the batch any more; carries control out of the pipeline between two steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineRequest:
    """One job's share of a batch."""

    seeds: tuple[int, ...]
    """One a result: seed, seed + 1, …"""
    prompt: str | None = None
    negative_prompt: str | None = None
    tensors: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Embeddings (T, D) and (D,), masks (T,), by parameter; the same for each of its results."""
    media: Mapping[str, Any] = field(default_factory=dict)
    """Decoded files by parameter. A request that has any shares no call with others."""
    shared: Mapping[str, Any] = field(default_factory=dict)
    """Arguments that all requests of a batch must have in common: steps, size, guidance, …"""
    adapter: tuple[str, float] | None = None
    """A LoRA adapter and its scale."""
    previews: int = 0
    """Steps between two previews; 0: none."""
    fps: float = 0.0
    """Frames a second of its videos."""
    pixels: int = 0
    """Pixels of one result, of all its frames."""

    def key(self) -> object:
        """Requests with equal keys may run in one batch."""
        if self.media:
            return id(self)
        shared = tuple(sorted((name, repr(value)) for name, value in self.shared.items()))
        tensors = tuple(sorted((name, str(array.dtype), self._fixed(name)) for name, array in self.tensors.items()))
        return shared, tensors, self.prompt is None, self.negative_prompt is None, self.adapter

    def _fixed(self, name: str) -> tuple[int, ...]:
        """The part of a tensor's shape that padding cannot even out."""
        shape, masked = self.tensors[name].shape, any(is_mask(other) for other in self.tensors)
        return (len(shape), *shape[1:]) if masked else shape


def blamed(message: str, request: PipelineRequest, lacking: str | None) -> str | None:
    """The parameter that an error of a pipeline is about: a file that is not there, one that the wording names, or the
    first of those that only the class checks.

    `lacking`: a file that the pipeline takes, and that the request does not have.
    """
    if lacking is not None and any(sign in message for sign in (lacking, *_OF_NO_FILE)):
        return lacking
    words = set(re.findall(r"\w+", message))
    if words & {"height", "width"} & request.shared.keys():
        return "size"
    own = [name for name in request.shared if name not in RANGES]
    return next((name for name in own if name in words), next(iter(own), None))


def is_refusal(error: Exception, request: PipelineRequest, param: str | None) -> bool:
    """Whether a pipeline's error, before its first step, is about what the request gave it; any other may pass.

    `param`: the parameter that it is about.
    """
    if isinstance(error, ValueError | TypeError):
        return True
    if param is None and not request.media:
        return False
    if isinstance(error, RuntimeError):
        return _OF_SHAPES.search(str(error)) is not None
    return isinstance(error, LookupError | ArithmeticError | AttributeError)


def parse_request(job: Job, pipeline: PipelineShape) -> PipelineRequest:
    """Check a job against the pipeline; raises EngineRejected naming the field. Blocks where it has files."""
    given, rest = job.engine_input, dict(job.sampling)
    count = _checked("n", rest.pop("n", 1), _whole(1, pipeline.max_images))
    seed = rest.pop("seed", None)
    first = secrets.randbits(32) if seed is None else _checked("seed", seed, _whole(0, MAX_SEED - count))
    previews = _checked("previews", rest.pop("previews", 0), _whole(0, 1000))
    if previews and not pipeline.can_preview:
        raise EngineRejected(f"{pipeline.name} cannot show previews", param="previews")
    negative = rest.pop("negative_prompt", None)
    if negative is not None and "negative_prompt" not in pipeline.parameters:
        raise EngineRejected(f"{pipeline.name} takes no negative prompt", param="negative_prompt")
    media = media_inputs.of_messages(given.messages or (), pipeline) | media_inputs.of_values(given.values, pipeline)
    tensors = _tensors(given.values, pipeline)
    if negative is not None and not pipeline.has_text and "negative_prompt_embeds" not in tensors:
        message = f"{pipeline.name} has no text encoder here; give it negative_prompt_embeds"
        raise EngineRejected(message, param="negative_prompt")
    adapter, fps = _adapter(job, rest, pipeline), _fps(rest, pipeline)
    shared = _shared(rest, fps, pipeline)
    if negative and negative.strip():
        _check_guidance(shared, pipeline)
    return PipelineRequest(
        seeds=tuple(range(first, first + count)),
        prompt=_prompt(job, tensors, bool(media), pipeline),
        negative_prompt=None if "negative_prompt_embeds" in tensors else negative,
        tensors=tensors,
        media=media,
        shared=shared,
        adapter=adapter,
        previews=previews,
        fps=fps,
        pixels=_pixels(shared, pipeline),
    )


def _check_guidance(shared: Mapping[str, Any], pipeline: PipelineShape) -> None:
    """Refuse a negative prompt that nothing would lead away from: up to a scale of 1 pipelines make no use of it."""
    name = next((one for one in ("true_cfg_scale", "guidance_scale") if one in pipeline.parameters), "")
    scale = shared.get(name, pipeline.parameters.get(name))
    if isinstance(scale, int | float) and scale <= 1:
        unread = f"a negative prompt has no effect with {name}={scale:g}: raise that above 1, or leave the prompt out"
        raise EngineRejected(unread, param="negative_prompt")


def _prompt(job: Job, tensors: Mapping[str, np.ndarray], has_media: bool, pipeline: PipelineShape) -> str | None:
    text = _text(job.engine_input)
    if "prompt" not in pipeline.parameters:
        if text is not None and text.strip():
            raise EngineRejected(f"{pipeline.name} takes no prompt: send the file alone", param="prompt")
        return None
    if "prompt_embeds" in tensors:
        return None
    if not pipeline.has_text:
        raise EngineRejected(f"{pipeline.name} has no text encoder here; give it prompt_embeds", param="prompt_embeds")
    text = job.stage_input.request.text() if text is None else text  # after a stage that made none
    if not text.strip() and not has_media:
        raise EngineRejected("an image needs a prompt", param="prompt")
    return text


def _text(given: EngineInput) -> str | None:
    if given.text is not None or given.messages is None:
        return given.text
    return "\n".join(_texts(given.messages))


def _texts(messages: Sequence[Message]) -> list[str]:
    contents = [message.content for message in messages if message.role != "assistant"]
    parts = [part for content in contents for part in ((content,) if isinstance(content, str) else content)]
    return [part if isinstance(part, str) else part.text for part in parts if isinstance(part, str | TextPart)]


def _tensors(values: Mapping[str, Any], pipeline: PipelineShape) -> dict[str, np.ndarray]:
    # `prompt` is what the default processor names a request's text, which is taken from `text`.
    others = {"prompt", "text"} | media_inputs.names_of_values(values, pipeline)
    tensors = {name: _tensor(name, value, pipeline) for name, value in values.items() if name not in others}
    for name in [name for name in tensors if not is_mask(name) and tensors[name].ndim == 2]:
        mask = pipeline.mask_of(name)
        if mask is not None:
            given = tensors.setdefault(mask, np.ones(len(tensors[name]), np.int64))
            if len(given) != len(tensors[name]):
                raise EngineRejected(f"{mask} has {len(given)} places, {name} has {len(tensors[name])}", param=mask)
    return tensors


def _tensor(name: str, value: Any, pipeline: PipelineShape) -> np.ndarray:
    if name not in pipeline.parameters or not is_tensor(name):
        raise EngineRejected(f"{pipeline.name} takes no {name!r}", param=name)
    array = np.asarray(value)
    masks = is_mask(name)
    number = np.issubdtype(array.dtype, np.integer) or array.dtype == bool if masks else array.dtype.kind == "f"
    if not number or array.ndim not in ((1,) if masks else (1, 2)) or array.size == 0:
        wanted = "whole numbers of shape (T,)" if masks else "floats of shape (T, D) or (D,)"
        raise EngineRejected(f"{name} must be {wanted}, not {array.dtype} {array.shape}", param=name)
    return array.astype(np.int64 if masks else np.float32)


def _adapter(job: Job, rest: dict[str, Any], pipeline: PipelineShape) -> tuple[str, float] | None:
    """The adapter that the request names; another stage of the pipeline may have it."""
    name, scale = job.stage_input.request.lora, rest.pop("lora_scale", None)
    if name not in pipeline.adapters:
        if scale is not None:
            raise EngineRejected(
                "lora_scale has no effect: the request names no adapter of this stage", param="lora_scale"
            )
        return None
    return name, _checked("lora_scale", 1.0 if scale is None else scale, Annotated[float, Meta(ge=-10, le=10)])


def _fps(rest: dict[str, Any], pipeline: PipelineShape) -> float:
    """Frames a second: asked for by its one name, or by the pipeline's own."""
    if not pipeline.makes_video:
        return 0.0
    name = pipeline.rate
    fps = rest.pop("fps", None)
    if fps is None and name is not None:
        fps = rest.pop(name, None)
    return float(_checked("fps", pipeline.fps if fps is None else fps, Annotated[float, Meta(ge=0.1, le=1000)]))


def _shared(rest: dict[str, Any], fps: float, pipeline: PipelineShape) -> dict[str, Any]:
    if "size" in rest:
        rest["width"], rest["height"] = _size(rest.pop("size"))
    if (seconds := rest.pop("seconds", None)) is not None:
        rest |= _length(_checked("seconds", seconds, Annotated[float, Meta(gt=0, le=86400)]), fps, pipeline)
    if pipeline.rate is not None and pipeline.makes_video:
        rest[pipeline.rate] = fps if "float" in str(pipeline.types.get(pipeline.rate, "float")) else round(fps)
    for name in rest:
        if not pipeline.may_set(name):
            hint = "; use n" if re.fullmatch(r"num_\w+_per_prompt", name) else ""
            raise EngineRejected(f"unknown parameter {name!r}: {pipeline.name} does not take it{hint}", param=name)
    checked = {
        name: _checked(name, value, RANGES.get(name) or pipeline.types.get(name, Any)) for name, value in rest.items()
    }
    if checked.get("width", 1) * checked.get("height", 1) > pipeline.max_pixels:
        raise EngineRejected(f"an image may have {pipeline.max_pixels} pixels", param="size")
    if checked.get(pipeline.frames or "", 1) > pipeline.max_frames:
        raise EngineRejected(f"a video may have {pipeline.max_frames} frames", param=pipeline.frames)
    return checked


def _length(seconds: float, fps: float, pipeline: PipelineShape) -> dict[str, Any]:
    """So many seconds in the pipeline's own parameter, of sound or of video."""
    if pipeline.frames is not None:
        ratio = pipeline.frames_ratio
        return {pipeline.frames: max(1, round(seconds * fps / ratio)) * ratio + 1}
    if pipeline.seconds is not None:
        return {pipeline.seconds: seconds}
    raise EngineRejected(f"{pipeline.name} makes nothing that lasts", param="seconds")


def _pixels(shared: Mapping[str, Any], pipeline: PipelineShape) -> int:
    """Pixels of a result, as far as they are known before it is made."""
    width, height = (shared.get(side) or pipeline.default(side, pipeline.side) for side in ("width", "height"))
    frames = shared.get(pipeline.frames or "") or pipeline.default(pipeline.frames, 1)
    return int(width * height * frames)


def _checked(name: str, value: Any, kind: Any) -> Any:
    """A value of the type that is known here, or that the pipeline declares."""
    if isinstance(value, list) and len(value) > MAX_STEPS:
        raise EngineRejected(f"{name} may have {MAX_STEPS} entries", param=name)
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise EngineRejected(f"{name}: {error}", param=name) from error
    except TypeError as error:  # of a type that no message has, such as a tensor
        raise EngineRejected(f"{name} cannot be set by a request", param=name) from error


def _size(value: Any) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", value) if isinstance(value, str) else None
    if found is None:
        raise EngineRejected(f"size must be like 64x64, not {value!r}", param="size")
    return int(found[1]), int(found[2])


def _whole(least: int, most: int) -> Any:
    return Annotated[int, Meta(ge=least, le=most)]


RANGES: Mapping[str, Any] = {
    "num_inference_steps": _whole(1, MAX_STEPS),
    "height": _whole(8, 65536),
    "width": _whole(8, 65536),
    "guidance_scale": Annotated[float, Meta(ge=0, le=1000)],
    "strength": Annotated[float, Meta(ge=0, le=1)],
    **dict.fromkeys(("num_frames", "frames", "video_length"), _whole(1, 1 << 16)),
}
"""Parameters whose range is known here; the pipeline itself checks others."""
