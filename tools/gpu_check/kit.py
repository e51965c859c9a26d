"""The parts of every check: the sizes of a GPU or of a CPU, the checkpoints, and a served pipeline of stages."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnibus import Omni
from omnibus.pipeline.loading import parse_pipeline
from tools.gpu_check.calls import FOLDER
from tools.random_checkpoints import LlmSize, PainterSize

Figures = dict[str, Any]
_START, _DEADLINE = 200.0, 150
"""Seconds for a pipeline to come up; for one request."""


class Impossible(Exception):
    """The check cannot run here, for this reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is computed."""

    llm: LlmSize
    vocabulary: int
    texts: int
    tokens: int
    """The length of each text."""
    painter: PainterSize
    images: int
    steps: int
    handoff_mib: int


ON_GPU = Sizes(
    llm=LlmSize(
        layers=12, width=1024, inner=2816, heads=8, head_dim=128, context=1024, spread=0.04, dtype="bfloat16"
    ),
    vocabulary=8192, texts=128, tokens=128,
    painter=PainterSize(channels=(128, 256, 384), latents=32), images=96, steps=20, handoff_mib=64,
)  # fmt: skip
ON_CPU = Sizes(
    llm=LlmSize(), vocabulary=64, texts=8, tokens=12, painter=PainterSize(), images=10, steps=2, handoff_mib=4
)


@dataclass(frozen=True, slots=True)
class Kit:
    """The folder and the sizes that a check works with."""

    folder: Path
    cpu: bool

    @property
    def sizes(self) -> Sizes:
        return ON_CPU if self.cpu else ON_GPU

    @property
    def llm(self) -> Path:
        return self.folder / "llm"

    @property
    def painter(self) -> Path:
        return self.folder / "painter"

    @property
    def _env(self) -> dict[str, str]:
        threads = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"} if self.cpu else {}
        return {"HF_HUB_OFFLINE": "1", **threads}

    def records(self, check: str) -> Path:
        """The folder in which the painters of a check record their calls."""
        folder = self.folder / f"calls-{check}"
        folder.mkdir(exist_ok=True)
        return folder

    def served(self, *stages: Mapping[str, Any]) -> AbstractContextManager[Omni]:
        """A pipeline of these stages on a broker of its own, each replica a process."""
        numbered = [{"stage_id": number, **stage} for number, stage in enumerate(stages)]
        document = {"name": "gpu-check", "deadline": f"{_DEADLINE}s", "heartbeat_timeout": "10s", "stages": numbered}
        return Omni(parse_pipeline(json.dumps(document)), stage_init_timeout=_START, init_timeout=_START)

    def writer(self, *, final: bool = True, **engine_args: Any) -> dict[str, Any]:
        """A stage of the language model under vLLM; raises Impossible where that is not installed."""
        require("vllm")
        size = self.sizes.llm
        on_device = {"kv_cache_memory_bytes": 32 << 20} if self.cpu else {"gpu_memory_utilization": 0.25}
        return {
            "name": "writer", "engine": "vllm", "model": str(self.llm), "slots": self.sizes.texts,
            "env": self._env,
            "engine_args": {
                "dtype": size.dtype, "enforce_eager": True, "max_model_len": size.context, **on_device, **engine_args,
            },
            **(_final("text") if final else {}),
        }  # fmt: skip

    def paints(self, check: str, **fields: Any) -> dict[str, Any]:
        """A stage of the painter under diffusers; raises Impossible where that is not installed."""
        require("diffusers")
        return {
            "name": "painter", "engine": "diffusers", "model": str(self.painter), "slots": 8,
            "env": {**self._env, FOLDER: str(self.records(check))},
            "engine_args": {"pipeline_class": "tools.gpu_check.painter:RecordedPainter"},
            **_final("image"), **fields,
        }  # fmt: skip


def require(package: str) -> None:
    """Raise Impossible where a package is not installed."""
    if importlib.util.find_spec(package) is None:
        raise Impossible(f"{package} is not installed")


def _final(kind: str) -> dict[str, Any]:
    return {"final_output": True, "final_output_type": kind}
