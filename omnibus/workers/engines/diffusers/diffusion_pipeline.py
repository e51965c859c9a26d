"""A loaded diffusion pipeline, and one batch through it. Imports diffusers and torch; everything here blocks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_type_hints

import numpy as np
import torch

from omnibus.errors import EngineDead, EngineError, EngineRejected, PipelineError
from omnibus.media import pictures
from omnibus.pipeline.spec import StageSpec
from omnibus.workers.engines.checkpoints import loading, require_file, resolve_model
from omnibus.workers.engines.diffusers.batch_request import RANGES, ImageRequest, PipelineShape, Stopped
from omnibus.workers.object_loading import load_object

LOADER_ARGS = frozenset({"variant", "use_safetensors", "low_cpu_mem_usage", "local_files_only"})
"""Keys of engine_args that go to `from_pretrained` as they are."""

_OF_ARGUMENTS = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError)
"""Exceptions that pipelines raise before their first step for arguments that they cannot use."""
OnStep = Callable[[int, int, Callable[[int], bytes]], bool]
"""Called after each step with its number, how many there are, and a function that renders row r as PNG: whether to go on."""


class DiffusionModel:
    """A pipeline on its device."""

    def __init__(self, stage: StageSpec) -> None:
        args = stage.engine_args
        device = args.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")
        self._dtype = _dtype(args.get("dtype") or ("float32" if device == "cpu" else "bfloat16"))
        model = resolve_model(stage.model, stage.revision)
        require_file(model, stage.revision, ("model_index.json",))
        more = {name: args[name] for name in LOADER_ARGS & args.keys()}
        with loading(model, stage.revision):
            kind = _pipeline_class(args.get("pipeline_class", "DiffusionPipeline"))
            more |= _left_out(kind.load_config(model, revision=stage.revision), args.get("leave_out", ()))
            self._pipeline = kind.from_pretrained(model, revision=stage.revision, dtype=self._dtype, **more)
        self._pipeline.set_progress_bar_config(disable=True)
        self._device = device
        self._pipeline.to(device)
        self.shape = self._shape(stage)

    def run(self, batch: Sequence[ImageRequest], on_step: OnStep) -> list[np.ndarray]:
        """Images of each request of the batch, uint8 (n, H, W, 3), in order.

        Rows do not influence each other: each has a generator of its own and padding is masked, so that a request's images
        are those it would get alone. Raises Stopped when `on_step` says so, which leaves the pipeline usable, EngineRejected
        for what the pipeline refuses before its first step, EngineDead when the device is lost, else EngineError.
        """
        started = False

        def after_step(pipeline: Any, step: int, _timestep: Any, state: dict[str, Any]) -> dict[str, Any]:
            nonlocal started
            started = True
            if not on_step(step + 1, pipeline.num_timesteps, lambda row: self._preview(state["latents"][row])):
                raise Stopped
            return {}

        try:
            with torch.inference_mode():
                result = self._pipeline(**self._arguments(batch), callback_on_step_end=after_step)
        except Stopped:
            raise
        except torch.AcceleratorError as error:
            raise EngineDead(f"the device failed: {error}") from error
        except Exception as error:  # pipelines raise whatever their many parts raise
            given = next((name for name in batch[0].shared if name not in RANGES), None)
            blamed = (ValueError, TypeError) if given is None else _OF_ARGUMENTS
            if started or not isinstance(error, blamed) or isinstance(error, torch.OutOfMemoryError):
                raise EngineError(f"{self.shape.name}: {error}") from error
            raise EngineRejected(f"{self.shape.name}: {error}", param=given) from error
        images = (np.asarray(result.images) * 255).round().astype(np.uint8)
        ends = np.cumsum([len(request.seeds) for request in batch])[:-1]
        return np.split(images, ends)

    def sleep(self) -> None:
        """Move the weights to host memory."""
        self._pipeline.to("cpu")
        if self._device != "cpu":
            torch.cuda.empty_cache()

    def wake_up(self) -> None:
        """Move the weights back."""
        self._pipeline.to(self._device)

    def _shape(self, stage: StageSpec) -> PipelineShape:
        pipeline = self._pipeline
        vae, processor = getattr(pipeline, "vae", None), getattr(pipeline, "image_processor", None)
        packed = hasattr(pipeline, "_unpack_latents")  # latents that are sequences of patches, not images
        encoders = [getattr(pipeline, name, None) for name in ("text_encoder", "text_encoder_2", "text_encoder_3")]
        return PipelineShape(
            name=type(pipeline).__name__,
            parameters=frozenset(inspect.signature(type(pipeline).__call__).parameters),
            types=_types(type(pipeline)),
            has_text=any(encoder is not None for encoder in encoders),
            can_preview=vae is not None and processor is not None and not packed,
            max_images=int(stage.engine_args.get("max_images", 16)),
            max_pixels=int(stage.engine_args.get("max_pixels", 4096 * 4096)),
        )

    def _arguments(self, batch: Sequence[ImageRequest]) -> dict[str, Any]:
        first, rows = batch[0], [request for request in batch for _ in request.seeds]
        seeds = [seed for request in batch for seed in request.seeds]
        arguments = {**first.shared, **self._tensors(rows), "output_type": "np"}
        # On the host whatever the device: a seed means the same picture everywhere.
        arguments["generator"] = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        if first.prompt is not None:
            arguments["prompt"] = [row.prompt for row in rows]
        # Some pipelines default it to "", and refuse that beside negative embeddings.
        if "negative_prompt" in self.shape.parameters:
            arguments["negative_prompt"] = (
                [row.negative_prompt for row in rows] if first.negative_prompt is not None else None
            )
        if "use_resolution_binning" in self.shape.parameters:
            arguments["use_resolution_binning"] = False
        return arguments

    def _tensors(self, rows: Sequence[ImageRequest]) -> dict[str, torch.Tensor]:
        longest = max((len(a) for row in rows for name, a in row.tensors.items() if _is_sequence(name, a)), default=0)
        masked = any("mask" in name for name in rows[0].tensors)
        return {
            name: self._stacked(name, [row.tensors[name] for row in rows], longest if masked else None)
            for name in rows[0].tensors
        }

    def _stacked(self, name: str, arrays: Sequence[np.ndarray], length: int | None) -> torch.Tensor:
        if length is not None and _is_sequence(name, arrays[0]):
            arrays = [np.pad(a, [(0, length - len(a)), *[(0, 0)] * (a.ndim - 1)]) for a in arrays]
        tensor = torch.from_numpy(np.stack(arrays)).to(self._pipeline.device)
        return tensor if name.endswith("_mask") else tensor.to(self._dtype)

    def _preview(self, latents: torch.Tensor) -> bytes:
        """The image that is in the latents of one row now, as PNG."""
        vae = self._pipeline.vae
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        decoded = vae.decode((latents[None] / vae.config.scaling_factor + shift).to(vae.dtype), return_dict=False)[0]
        image = self._pipeline.image_processor.postprocess(decoded, output_type="np")
        return pictures.encoded((np.asarray(image)[0] * 255).round().astype(np.uint8))


def _types(kind: type) -> dict[str, Any]:
    """Types of a pipeline's parameters; many declare one without None, and default to None."""
    try:
        hints = get_type_hints(kind.__call__)
    except (NameError, TypeError):  # of names that only its type checker knows
        return {}
    return {name: hint | None for name, hint in hints.items() if name != "return"}


def _left_out(config: Mapping[str, Any], named: Sequence[str]) -> dict[str, None]:
    """Components not to load: those named, such as an encoder that a stage before this one is, and those saved as None.

    Some pipelines load without the latter only if those are named. Raises PipelineError for a name that is no component.
    """
    components = {name: list(value) for name, value in config.items() if isinstance(value, list | tuple)}
    unknown = next((name for name in named if name not in components), None)
    if unknown is not None:
        known = ", ".join(sorted(components))
        raise PipelineError(f"there is no component {unknown!r}; there are {known}", field="engine_args.leave_out")
    return {name: None for name, value in components.items() if name in named or value == [None, None]}


def _is_sequence(name: str, array: np.ndarray) -> bool:
    return array.ndim == 2 or name.endswith("_mask")


def _dtype(name: Any) -> torch.dtype:
    known: Mapping[str, torch.dtype] = {
        "float32": torch.float32,
        "float16": torch.float16,
        "bfloat16": torch.bfloat16,
    }
    if name not in known:
        raise PipelineError(f"must be one of {', '.join(known)}, not {name!r}", field="engine_args.dtype")
    return known[name]


def _pipeline_class(name: Any) -> Any:
    """A class of diffusers by its name, or any other as `module:Class`."""
    return load_object(name if ":" in str(name) else f"diffusers:{name}", "engine_args.pipeline_class")
