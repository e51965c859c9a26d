"""A pipeline as its stage wants it: loaded, on its devices, with what diffusers offers to make it fit or go faster."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import diffusers
import torch
from diffusers import hooks

from omnibus.errors import InvalidRequest, PipelineError
from omnibus.pipeline.files import suggestion
from omnibus.pipeline.spec import StageSpec
from omnibus.workers.engines.checkpoints import loading, require_file, resolve_model
from omnibus.workers.engines.diffusers.signature import FPS, PipelineShape, read_signature
from omnibus.workers.object_loading import load_object

LOADER_ARGS = frozenset({"variant", "use_safetensors", "low_cpu_mem_usage", "local_files_only"})
"""Keys of engine_args that go to `from_pretrained` as they are."""
DENOISERS = ("transformer", "transformer_2", "unet")
_OFFLOADS = {
    "model": "enable_model_cpu_offload",
    "sequential": "enable_sequential_cpu_offload",
    "group": "enable_group_offload",
}
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Setup:
    """The loading and tuning of one stage's pipeline. Everything raises PipelineError naming the argument that cannot be."""

    def __init__(self, stage: StageSpec) -> None:
        self._stage, self._args = stage, stage.engine_args
        self._device = str(self._args.get("device") or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._dtype = _dtypes(self._args.get("dtype") or ("float32" if self._device == "cpu" else "bfloat16"))
        self._is_moved_by_diffusers = bool(self._args.get("device_map") or self._args.get("offload"))

    def load(self) -> Any:
        """The pipeline, ready to be called; raises CheckpointMissing too."""
        stage, args = self._stage, self._args
        model = resolve_model(stage.model, stage.revision)
        require_file(model, stage.revision, ("model_index.json",))
        more = {name: args[name] for name in LOADER_ARGS & args.keys()} | self._placement() | self._quantization()
        with loading(model, stage.revision):
            kind = _pipeline_class(args.get("pipeline_class", "DiffusionPipeline"))
            saved = kind.load_config(model, revision=stage.revision)
            more |= _left_out(saved, inspect.signature(kind.__init__).parameters, args.get("leave_out", ()))
            pipeline = kind.from_pretrained(model, revision=stage.revision, dtype=self._dtype, **more)
        pipeline.set_progress_bar_config(disable=True)
        self._tune(pipeline)
        for name, path in (args.get("lora_modules") or {}).items():
            _set("lora_modules", pipeline.load_lora_weights, resolve_model(path), adapter_name=name)
        if not self._is_moved_by_diffusers:
            pipeline.to(self._device)
        elif args.get("offload"):
            self._offload(pipeline)
        self._compile(pipeline)
        return pipeline

    def move(self, pipeline: Any, device: str | None = None) -> None:
        """Move the weights to a device, without one to its own; raises InvalidRequest where diffusers places them."""
        if self._is_moved_by_diffusers:
            raise InvalidRequest("a stage with offload or device_map cannot sleep: diffusers moves its weights itself")
        pipeline.to(device or self._device)
        if device == "cpu" and self._device != "cpu":
            torch.cuda.empty_cache()

    def dtype_of(self, pipeline: Any) -> torch.dtype:
        """The type that embeddings have."""
        return next((part.dtype for part in denoisers(pipeline)), torch.float32)

    def _placement(self) -> dict[str, Any]:
        wanted = self._args.get("device_map")
        if wanted is None:
            return {}
        if self._args.get("offload"):
            raise PipelineError("goes with offload or device_map, not both", field="engine_args.device_map")
        known = ("balanced", "cuda", "cpu")
        return {"device_map": _one_of("device_map", wanted, known)}

    def _quantization(self) -> dict[str, Any]:
        given = self._args.get("quantization_config")
        if given is None:
            return {}
        from diffusers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING  # noqa: PLC0415 only where it is asked for

        config = diffusers.PipelineQuantizationConfig
        _check_names("quantization_config", given, config)
        _one_of("quantization_config.quant_backend", given.get("quant_backend"), AUTO_QUANTIZATION_CONFIG_MAPPING)
        return {"quantization_config": _set("quantization_config", config, **given)}

    def _tune(self, pipeline: Any) -> None:
        args = self._args
        if (given := args.get("scheduler")) is not None:
            kind, more = _named("scheduler", given, _classes(diffusers, "Scheduler"))
            _check_names("scheduler", more, kind)
            pipeline.scheduler = _set("scheduler", kind.from_config, pipeline.scheduler.config, **more)
        for name in ("vae_tiling", "vae_slicing"):
            if args.get(name):
                enable = getattr(getattr(pipeline, "vae", None), f"enable_{name.removeprefix('vae_')}", None)
                if enable is None:
                    raise PipelineError(
                        f"the VAE of {type(pipeline).__name__} cannot do that", field=f"engine_args.{name}"
                    )
                enable()
        if (backend := args.get("attention_backend")) is not None:
            known = [one.value for one in diffusers.models.attention_dispatch.AttentionBackendName]
            _one_of("attention_backend", backend, known)
            for part in _denoisers("attention_backend", pipeline, "set_attention_backend"):
                _set("attention_backend", part.set_attention_backend, backend)
        if (given := args.get("cache")) is not None:
            kind, more = _named("cache", given, _classes(hooks, "CacheConfig", "BroadcastConfig"))
            _check_names("cache", more, kind)
            if "current_timestep_callback" in {field.name for field in dataclasses.fields(kind)}:
                more["current_timestep_callback"] = lambda: pipeline.current_timestep
            for part in _denoisers("cache", pipeline, "enable_cache"):
                _set("cache", part.enable_cache, kind(**more))

    def _offload(self, pipeline: Any) -> None:
        how = _one_of("offload", self._args["offload"], _OFFLOADS)
        if self._device == "cpu":
            raise PipelineError("there is no GPU to keep weights off; leave it out", field="engine_args.offload")
        enable: Callable[..., Any] = getattr(pipeline, _OFFLOADS[how])
        if how == "group":
            more = {"onload_device": torch.device(self._device), "offload_type": "leaf_level", "use_stream": True}
        else:
            more = {"device": self._device}
        _set("offload", enable, **more)

    def _compile(self, pipeline: Any) -> None:
        given = self._args.get("compile")
        if not given:
            return
        more = dict(given) if isinstance(given, Mapping) else {}
        regional = more.pop("regional", False)
        _check_names("compile", more, torch.compile)
        for part in denoisers(pipeline):
            _set("compile", part.compile_repeated_blocks if regional else part.compile, **more)


def denoisers(pipeline: Any) -> list[Any]:
    """The models that run at every step."""
    return [part for name in DENOISERS if (part := getattr(pipeline, name, None)) is not None]


def shape_of(pipeline: Any, stage: StageSpec) -> PipelineShape:
    """The facts on a loaded pipeline; raises PipelineError for arguments that cannot be."""
    args, (parameters, types) = stage.engine_args, read_signature(type(pipeline))
    vae, processor = getattr(pipeline, "vae", None), getattr(pipeline, "image_processor", None)
    packed = hasattr(pipeline, "_unpack_latents")  # latents that are sequences of patches, not images
    encoders = [getattr(pipeline, name, None) for name in ("text_encoder", "text_encoder_2", "text_encoder_3")]
    ratio = _first(pipeline, ("vae_scale_factor_temporal", "vae_temporal_compression_ratio"))
    size = getattr(pipeline, "default_sample_size", None)
    rate = next(
        (parameters[name] for name in ("frame_rate", "fps") if isinstance(parameters.get(name), int | float)), FPS
    )
    return PipelineShape(
        name=type(pipeline).__name__,
        parameters=parameters,
        types=types,
        has_text=any(encoder is not None for encoder in encoders),
        can_preview=vae is not None and processor is not None and not packed and hasattr(vae.config, "scaling_factor"),
        max_images=int(args.get("max_images", 16)),
        max_pixels=int(args.get("max_pixels", 4096 * 4096)),
        max_frames=int(args.get("max_frames", 1024)),
        fps=float(args.get("fps", rate)),
        frames_ratio=int(ratio or 1),
        side=int(size * pipeline.vae_scale_factor) if isinstance(size, int) else 1024,
        sample_rate=_sample_rate(pipeline),
        adapters=frozenset(args.get("lora_modules") or ()),
    )


def _sample_rate(pipeline: Any) -> int:
    """The rate of the sound that a pipeline makes, Hz; 0 where it makes none."""
    vocoder = getattr(getattr(pipeline, "vocoder", None), "config", None)
    vae = getattr(pipeline, "vae", None)
    places = ((vocoder, ("output_sampling_rate", "sampling_rate")), (getattr(vae, "config", None), ("sampling_rate",)))
    found = next(
        (rate for where, names in (*places, (pipeline, ("sample_rate",))) if (rate := _first(where, names))), 0
    )
    return int(found)


def _first(where: Any, names: Iterable[str]) -> Any:
    return next((value for name in names if (value := getattr(where, name, None)) is not None), None)


def _left_out(saved: Mapping[str, Any], taken: Iterable[str], named: Sequence[str]) -> dict[str, None]:
    """Components not to load: those named, such as an encoder that a stage before this one is, and those saved as None.

    Some pipelines load without the latter only if those are named. Raises PipelineError for a name that is no component, neither
    of the checkpoint nor one that the class has beyond it.
    """
    components = {name: list(value) for name, value in saved.items() if isinstance(value, list | tuple)}
    known = dict.fromkeys((*components, *taken))
    unknown = next((name for name in named if name not in known), None)
    if unknown is not None:
        hint = suggestion(unknown, known) or f"; there are {', '.join(sorted(components))}"
        raise PipelineError(f"there is no component {unknown!r}{hint}", field="engine_args.leave_out")
    return dict.fromkeys((*named, *(name for name, value in components.items() if value == [None, None])))


def _dtypes(given: Any) -> Any:
    """A type of all components, or one each, `default` for the others."""
    if isinstance(given, Mapping):
        return {name: _DTYPES[_one_of(f"dtype.{name}", one, _DTYPES)] for name, one in given.items()}
    return _DTYPES[_one_of("dtype", given, _DTYPES)]


def _pipeline_class(name: Any) -> Any:
    """A class of diffusers by its name, or any other as `module:Class`."""
    return load_object(name if ":" in str(name) else f"diffusers:{name}", "engine_args.pipeline_class")


def _classes(module: Any, *ends: str) -> dict[str, Any]:
    return {name: getattr(module, name) for name in dir(module) if name.endswith(ends) and name not in ends}


def _named(field: str, given: Any, known: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The class that an argument names, alone or as `type` beside the class's own arguments."""
    more = dict(given) if isinstance(given, Mapping) else {"type": given}
    name = _one_of(field if not isinstance(given, Mapping) else f"{field}.type", more.pop("type", None), known)
    return known[name], more


def _one_of(field: str, given: Any, known: Iterable[str]) -> str:
    names = list(known)
    if given not in names:
        hint = suggestion(str(given), names) or f"; it is one of {', '.join(sorted(names))}"
        raise PipelineError(f"there is no {given!r}{hint}", field=f"engine_args.{field}")
    return str(given)


def _check_names(field: str, given: Mapping[str, Any], call: Callable[..., Any]) -> None:
    """Raise PipelineError for an argument that a class or function does not have."""
    known = inspect.signature(call).parameters
    for name in given:
        if name not in known:
            hint = suggestion(name, known) or f"; it takes {', '.join(known)}"
            raise PipelineError(f"{call.__name__} has no argument {name!r}{hint}", field=f"engine_args.{field}.{name}")


def _denoisers(field: str, pipeline: Any, method: str) -> list[Any]:
    found = [part for part in denoisers(pipeline) if hasattr(part, method)]
    if not found:
        raise PipelineError(f"no model of {type(pipeline).__name__} has {method}", field=f"engine_args.{field}")
    return found


def _set(field: str, call: Callable[..., Any], *args: Any, **more: Any) -> Any:
    """The value that diffusers makes of an argument; raises PipelineError with its words where it cannot."""
    try:
        return call(*args, **more)
    except Exception as error:  # diffusers and the libraries behind it raise whatever they like
        raise PipelineError(f"diffusers cannot do that here: {error}", field=f"engine_args.{field}") from error
