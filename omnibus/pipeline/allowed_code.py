"""The code that a stage may have loaded: what was named to this very command, and nothing that only the broker names.

Anybody who may write a bucket of the broker could otherwise have every worker import, load or run what they like. A command
trusts the pipeline file that it was given, its `--allow-module` flags, the engines of installed packages and our own input
processors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import msgspec

from omnibus.errors import CodeNotAllowed
from omnibus.pipeline.engines import PACKAGE_SCHEME, ModelKind, engine_kind, engine_modules
from omnibus.pipeline.spec import PipelineSpec, StageSpec

OWN_MODULES = frozenset({
    "omnibus.presets", "omnibus.omni_tiny.clip", "omnibus.omni_tiny.processors", "omnibus.workers.engines.qwen_omni",
})  # fmt: skip
"""Hold input processors and stages of shipped pipelines, and nothing that does more than a stage's input."""
PLAIN_VARIABLES = frozenset({
    "ASCEND_RT_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_LAUNCH_BLOCKING", "CUDA_VISIBLE_DEVICES",
    "GLOO_SOCKET_IFNAME", "HF_HUB_OFFLINE", "HF_TOKEN", "HIP_VISIBLE_DEVICES", "KMP_AFFINITY", "KMP_BLOCKTIME",
    "LANG", "MALLOC_ARENA_MAX", "MKL_NUM_THREADS", "NCCL_DEBUG", "NCCL_IB_DISABLE", "NCCL_P2P_DISABLE",
    "NCCL_SOCKET_IFNAME", "NUMEXPR_NUM_THREADS", "OMP_NUM_THREADS", "OMP_PLACES", "OMP_PROC_BIND", "OMP_WAIT_POLICY",
    "OPENBLAS_NUM_THREADS", "PYTHONUNBUFFERED", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF",
    "TOKENIZERS_PARALLELISM", "TQDM_DISABLE", "TRANSFORMERS_OFFLINE", "TZ", "VLLM_ATTENTION_BACKEND",
    "VLLM_CPU_KVCACHE_SPACE", "VLLM_CPU_OMP_THREADS_BIND", "VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_LOGGING_LEVEL",
    "VLLM_NO_USAGE_STATS",
})  # fmt: skip
"""Environment that no process loads code for. A list of those that do would never be complete: PYTHONPATH, LD_PRELOAD, HOME, …"""
_REMOTE_CODE = "trust_remote_code"


@dataclass(frozen=True, slots=True)
class CodeName:
    """One place of a stage where code is named."""

    field: str
    name: str
    """The module, or the setting that has code loaded."""
    value: str | None = None
    """Value of a setting; None for a module."""

    def is_in(self, allowed: frozenset[str]) -> bool:
        """A module is allowed by its own name or that of a package around it, a setting by its name or as NAME=VALUE."""
        if self.value is not None:
            return self.name in allowed or f"{self.name}={self.value}" in allowed
        parts = self.name.split(".")
        return any(".".join(parts[:end]) in allowed for end in range(1, len(parts) + 1))


@dataclass(frozen=True, slots=True)
class AllowedCode:
    """Names that the specifications of this process may have loaded; see `CodeName.is_in`."""

    names: frozenset[str] = frozenset()

    @classmethod
    def of(cls, trusted: PipelineSpec, more: Iterable[str] = ()) -> Self:
        """All that a specification names which did not come from the broker, and `more`."""
        named = (code for stage in trusted.stages for code in code_of(stage))
        return cls(frozenset(more).union(_token(code) for code in named))

    def with_changes(self, before: PipelineSpec, after: PipelineSpec) -> Self:
        """This, and what only the changed specification names: the flags of this command have changed it."""
        return type(self)(self.names | (self.of(after).names - self.of(before).names))

    def check(self, stage: StageSpec) -> None:
        """Raise CodeNotAllowed for the first place of a stage where something else is named; loads nothing."""
        code = next(self.beyond(stage), None)
        if code is not None:
            raise CodeNotAllowed(
                f"stage {stage.name!r}: {code.field} would have code loaded, {code.name}, and only the broker names it: give "
                f"this command the pipeline's file (--pipeline FILE), or allow it by --allow-module {code.name} or "
                "OMNIBUS_ALLOWED_MODULES",
                param=code.field,
            )

    def beyond(self, stage: StageSpec) -> Iterator[CodeName]:
        """Everything that a stage names and that is not allowed."""
        allowed = self.names | OWN_MODULES | engine_modules()
        return (code for code in code_of(stage) if not code.is_in(allowed))


def code_of(stage: StageSpec) -> Iterator[CodeName]:
    """Everything in a stage that has code loaded or may have."""
    kind = engine_kind(stage.engine)
    for field, function in (("input_processor", stage.input_processor), ("prompt_expand", stage.prompt_expand)):
        if function is not None:
            yield CodeName(field, _module(function))
    if kind.model is ModelKind.CODE and stage.model:
        yield CodeName("model", _module(stage.model))
    yield from _environment_code(stage)
    for name, value in stage.engine_args.items():
        field = f"engine_args.{name}"
        if name in kind.module_arguments and ":" in str(value):
            yield CodeName(field, _module(str(value)))
        elif isinstance(value, str) and value.startswith(PACKAGE_SCHEME):
            yield CodeName(field, value.removeprefix(PACKAGE_SCHEME).partition("/")[0])
        elif kind.plain_arguments is not None and name not in kind.plain_arguments and not _is_number(value):
            yield CodeName(field, name, _text(value))
    if any(_trusts_remote_code(stage.engine_args)):
        yield CodeName(f"engine_args.{_REMOTE_CODE}", _REMOTE_CODE, f"{stage.model}@{stage.revision or ''}")


def _environment_code(stage: StageSpec) -> Iterator[CodeName]:
    if stage.python is not None:
        yield CodeName("python", "python", stage.python)
    for variable, value in stage.env.items():
        if variable not in PLAIN_VARIABLES:
            yield CodeName(f"env.{variable}", variable, value)


def environment_of(allowed: AllowedCode) -> dict[str, str]:
    """The variable by which a child process is allowed the same; JSON, for values hold commas."""
    return {"OMNIBUS_ALLOWED_MODULES": msgspec.json.encode(sorted(allowed.names)).decode()}


def _token(code: CodeName) -> str:
    return code.name if code.value is None else f"{code.name}={code.value}"


def _module(reference: str) -> str:
    return reference.partition(":")[0]


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float)


def _text(value: Any) -> str:
    return msgspec.json.encode(value, order="deterministic").decode()


def _trusts_remote_code(value: Any) -> Iterator[bool]:
    """Whether some mapping inside says so, however deep."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield name == _REMOTE_CODE and bool(inner)
            yield from _trusts_remote_code(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _trusts_remote_code(inner)
