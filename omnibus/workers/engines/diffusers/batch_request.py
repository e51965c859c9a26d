"""The checked request of one job to a diffusion pipeline: the rows it adds to a batch, and the batches it may join. Pure."""

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
from omnibus.workers.engines.protocol import EngineInput

MAX_SEED = 2**63 - 1
MAX_STEPS = 1000
RESERVED = frozenset(
    {
        "self",
        "prompt",
        "generator",
        "latents",
        "num_images_per_prompt",
        "output_type",
        "return_dict",
        "use_resolution_binning",
    }
    | {"callback", "callback_steps", "callback_on_step_end", "callback_on_step_end_tensor_inputs", "kwargs"}
)
"""Arguments of pipelines that the engine sets itself."""


class Stopped(Exception):
    """Nobody waits for the batch any more; carries control out of the pipeline between two steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineShape:
    """Facts on a pipeline that requests are checked by."""

    name: str
    parameters: frozenset[str]
    """Parameters of its `__call__`."""
    types: Mapping[str, Any] = field(default_factory=dict)
    """Their types, where it declares them."""
    has_text: bool
    """It can encode a prompt itself."""
    can_preview: bool
    max_images: int
    """Images of one request."""
    max_pixels: int
    """Pixels of one image."""

    def mask_of(self, embeds: str) -> str | None:
        """The parameter that masks these embeddings, None when the pipeline has none."""
        names = (embeds.replace("_embeds", "_attention_mask"), f"{embeds}_mask")
        return next((name for name in names if name != embeds and name in self.parameters), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRequest:
    """One job's share of a batch."""

    seeds: tuple[int, ...]
    """One an image: seed, seed + 1, …"""
    prompt: str | None = None
    negative_prompt: str | None = None
    tensors: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Embeddings (T, D) and (D,), masks (T,), by parameter; the same for each of its images."""
    shared: Mapping[str, Any] = field(default_factory=dict)
    """Arguments that all requests of a batch must have in common: steps, size, guidance, …"""
    previews: int = 0
    """Steps between two previews; 0: none."""

    def key(self) -> object:
        """Requests with equal keys may run in one batch."""
        shared = tuple(sorted((name, repr(value)) for name, value in self.shared.items()))
        tensors = tuple(sorted((name, str(array.dtype), self._fixed(name)) for name, array in self.tensors.items()))
        return shared, tensors, self.prompt is None, self.negative_prompt is None

    def _fixed(self, name: str) -> tuple[int, ...]:
        """The part of a tensor's shape that padding cannot even out."""
        shape, masked = self.tensors[name].shape, any("mask" in other for other in self.tensors)
        return (len(shape), *shape[1:]) if masked else shape


def parse_request(given: EngineInput, sampling: Mapping[str, Any], pipeline: PipelineShape) -> ImageRequest:
    """Check a job against the pipeline; raises EngineRejected naming the field."""
    rest = dict(sampling)
    count = _checked("n", rest.pop("n", 1), _whole(1, pipeline.max_images))
    seed = rest.pop("seed", None)
    first = secrets.randbits(32) if seed is None else _checked("seed", seed, _whole(0, MAX_SEED - count))
    previews = _checked("previews", rest.pop("previews", 0), _whole(0, 1000))
    if previews and not pipeline.can_preview:
        raise EngineRejected(f"{pipeline.name} cannot show previews", param="previews")
    negative = rest.pop("negative_prompt", None)
    if negative is not None and "negative_prompt" not in pipeline.parameters:
        raise EngineRejected(f"{pipeline.name} takes no negative prompt", param="negative_prompt")
    tensors = _tensors(given.values, pipeline)
    if negative is not None and not pipeline.has_text and "negative_prompt_embeds" not in tensors:
        message = f"{pipeline.name} has no text encoder here; give it negative_prompt_embeds"
        raise EngineRejected(message, param="negative_prompt")
    return ImageRequest(
        seeds=tuple(range(first, first + count)),
        prompt=_prompt(given, tensors, pipeline),
        negative_prompt=None if "negative_prompt_embeds" in tensors else negative,
        tensors=tensors,
        shared=_shared(rest, pipeline),
        previews=previews,
    )


def _prompt(given: EngineInput, tensors: Mapping[str, np.ndarray], pipeline: PipelineShape) -> str | None:
    if "prompt_embeds" in tensors:
        return None
    if not pipeline.has_text:
        raise EngineRejected(f"{pipeline.name} has no text encoder here; give it prompt_embeds", param="prompt_embeds")
    text = given.text if given.text is not None else "\n".join(_texts(given.messages or ()))
    if not text.strip():
        raise EngineRejected("an image needs a prompt", param="prompt")
    return text


def _texts(messages: Sequence[Message]) -> list[str]:
    contents = [message.content for message in messages if message.role != "assistant"]
    parts = [part for content in contents for part in ((content,) if isinstance(content, str) else content)]
    return [part if isinstance(part, str) else part.text for part in parts if isinstance(part, str | TextPart)]


def _tensors(values: Mapping[str, Any], pipeline: PipelineShape) -> dict[str, np.ndarray]:
    # `prompt` is what the default processor names a request's text, which is taken from `text`.
    tensors = {name: _tensor(name, value, pipeline) for name, value in values.items() if name != "prompt"}
    for name in [name for name in tensors if name.endswith("_embeds") and tensors[name].ndim == 2]:
        mask = pipeline.mask_of(name)
        if mask is not None:
            given = tensors.setdefault(mask, np.ones(len(tensors[name]), np.int64))
            if len(given) != len(tensors[name]):
                raise EngineRejected(f"{mask} has {len(given)} places, {name} has {len(tensors[name])}", param=mask)
    return tensors


def _tensor(name: str, value: Any, pipeline: PipelineShape) -> np.ndarray:
    if name not in pipeline.parameters or not name.endswith(("_embeds", "_mask")):
        raise EngineRejected(f"{pipeline.name} takes no {name!r}", param=name)
    array = np.asarray(value)
    is_mask = name.endswith("_mask")
    number = np.issubdtype(array.dtype, np.integer) or array.dtype == bool if is_mask else array.dtype.kind == "f"
    if not number or array.ndim not in ((1,) if is_mask else (1, 2)) or array.size == 0:
        wanted = "whole numbers of shape (T,)" if is_mask else "floats of shape (T, D) or (D,)"
        raise EngineRejected(f"{name} must be {wanted}, not {array.dtype} {array.shape}", param=name)
    return array.astype(np.int64 if is_mask else np.float32)


def _shared(rest: dict[str, Any], pipeline: PipelineShape) -> dict[str, Any]:
    if "size" in rest:
        rest["width"], rest["height"] = _size(rest.pop("size"))
    for name in rest:
        if name not in pipeline.parameters or name in RESERVED or name.endswith(("_embeds", "_mask")):
            raise EngineRejected(f"unknown parameter {name!r}: {pipeline.name} does not take it", param=name)
    checked = {
        name: _checked(name, value, RANGES.get(name) or pipeline.types.get(name, Any)) for name, value in rest.items()
    }
    if checked.get("width", 1) * checked.get("height", 1) > pipeline.max_pixels:
        raise EngineRejected(f"an image may have {pipeline.max_pixels} pixels", param="size")
    return checked


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
}
"""Parameters whose range is known here; the pipeline itself checks others."""
