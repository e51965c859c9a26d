"""Facts on a pipeline class that requests are checked by, read from the signature of its `__call__`. Imports no diffusers."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_type_hints

MASK = "mask"
"""The kind of a picture that says which part of another one is painted anew."""
_RESERVED = frozenset(
    {"self", "prompt", "generator", "latents", "output_type", "return_dict", "use_resolution_binning", "kwargs"}
    | {"num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt", "initial_audio_sampling_rate"}
    | {"callback", "callback_steps", "callback_on_step_end", "callback_on_step_end_tensor_inputs"}
)
"""Arguments of pipelines that the engine sets itself."""
_TENSORS = re.compile(r"(?P<stem>.*_)?(?P<what>embeds|mask)(?P<number>_\d)?")
_MEDIA = {
    "image": re.compile(r"images?|(?!negative_|ip_adapter_|masked_|mask_).*_images?|image_reference"),
    MASK: re.compile(r"mask|mask_image"),
    "video": re.compile(r"video|.*_video"),
    "audio": re.compile(r"audio|src_audio|reference_audio|initial_audio_waveforms"),
}
"""Names of the parameters that take files, by kind. IP adapters are not loaded, and so their pictures are not taken."""
_OF_VIDEO = frozenset({"num_frames", "frames", "video_length", "video", "num_videos_per_prompt"})
_SECONDS = ("audio_duration", "audio_end_in_s", "audio_length_in_s", "audio_duration_s")
"""Parameters that are the length of a sound."""
_FRAMES = ("num_frames", "frames", "video_length")
_RATES = ("frame_rate", "fps")
FPS = 16.0
"""Frames a second of a video where neither the request, nor the stage, nor the class says it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineShape:
    """Facts on a loaded pipeline that requests are checked by."""

    name: str
    parameters: Mapping[str, Any]
    """Parameters of its `__call__` with their defaults."""
    types: Mapping[str, Any] = field(default_factory=dict)
    """Their types, where it declares them."""
    has_text: bool
    """It can encode a prompt itself."""
    can_preview: bool = False
    max_images: int = 16
    """Results of one request."""
    max_pixels: int = 4096 * 4096
    """Pixels of one image or frame."""
    max_frames: int = 1024
    """Frames of one video, made or given."""
    fps: float = FPS
    """Frames a second of a video, unless a request says otherwise."""
    frames_ratio: int = 1
    """Frames of a video that are one of its latents; it has one more than a multiple of them."""
    side: int = 1024
    """Pixels of the sides of what is made, where neither a request nor the signature says it."""
    sample_rate: int = 0
    """Rate of its sound, Hz; 0: it has none."""
    adapters: frozenset[str] = frozenset()
    """LoRA adapters that requests may name."""

    def mask_of(self, embeds: str) -> str | None:
        """The parameter that masks these embeddings, None when the pipeline has none."""
        stem, number = embeds.partition("_embeds")[::2]
        names = (f"{stem}_attention_mask{number}", f"{stem}_embeds_mask{number}")
        return next((name for name in names if name in self.parameters), None)

    def media(self, kind: str) -> tuple[str, ...]:
        """Parameters that take files of a kind, the one first that files without an argument are for."""
        found = [name for name in self.parameters if _MEDIA[kind].fullmatch(name) and not self._is_number(name)]
        return tuple(sorted(found, key=lambda name: name not in ("image", "images", "video", "audio", "src_audio")))

    def takes_several(self, parameter: str) -> bool:
        """Whether a list of pictures is one input, and not one picture for each of several results."""
        hint = str(self.types.get(parameter, ""))
        of_pictures = "list[PIL" in hint.replace("List", "list") and "Tensor" not in hint
        return parameter.endswith("images") or of_pictures or "EditPlus" in self.name

    @property
    def takes_batches(self) -> bool:
        """Whether several results come of one call, each from a generator of its own."""
        hint = str(self.types.get("generator", "list"))
        return "prompt" in self.parameters and "list" in hint.lower()

    @property
    def makes_video(self) -> bool:
        return not _OF_VIDEO.isdisjoint(self.parameters)

    def first(self, names: Iterable[str]) -> str | None:
        """The first of these names that is a parameter."""
        return next((name for name in names if name in self.parameters), None)

    @property
    def seconds(self) -> str | None:
        """The parameter that is the length of a sound."""
        return self.first(_SECONDS)

    @property
    def frames(self) -> str | None:
        """The parameter that is the number of frames."""
        return self.first(_FRAMES)

    @property
    def rate(self) -> str | None:
        """The parameter that is the number of frames a second."""
        return self.first(_RATES)

    def default(self, name: str | None, otherwise: int) -> int:
        """The default of a whole number."""
        value = self.parameters.get(name or "")
        return value if isinstance(value, int) and not isinstance(value, bool) else otherwise

    def may_set(self, name: str) -> bool:
        """Whether a request sets this parameter by its sampling parameters."""
        taken = name in self.parameters and name not in _RESERVED and not is_tensor(name)
        return taken and not any(name in self.media(kind) for kind in _MEDIA)

    def _is_number(self, name: str) -> bool:
        return isinstance(self.parameters[name], bool | int | float)


def is_tensor(name: str) -> bool:
    """Whether a parameter takes embeddings or their mask."""
    found = _TENSORS.fullmatch(name)
    return found is not None and (found["what"] == "embeds" or found["stem"] is not None)


def is_mask(name: str) -> bool:
    """Whether a parameter that takes tensors takes a mask."""
    found = _TENSORS.fullmatch(name)
    return found is not None and found["what"] == "mask"


def read_signature(kind: type) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters of a pipeline's `__call__` with their defaults, and their types."""
    parameters = inspect.signature(kind.__call__).parameters
    defaults = {name: None if one.default is one.empty else one.default for name, one in parameters.items()}
    try:
        hints = get_type_hints(kind.__call__)
    except (NameError, TypeError):  # of names that only its type checker knows
        hints = {}
    # Many declare a type without None, and default to None.
    return defaults, {name: hint | None for name, hint in hints.items() if name != "return"}
