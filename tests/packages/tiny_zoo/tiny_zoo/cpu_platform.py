"""A platform of vLLM-Omni for CPU: enough of one to run tiny pipelines."""

from __future__ import annotations

from typing import Any

import psutil
import torch
from vllm.platforms.cpu import CpuPlatform
from vllm_omni.diffusion.attention.backends.registry import DiffusionAttentionBackendEnum
from vllm_omni.platforms.interface import OmniPlatform, OmniPlatformEnum


class CpuOmniPlatform(OmniPlatform, CpuPlatform):
    _omni_enum = OmniPlatformEnum.OOT

    @classmethod
    def get_omni_ar_worker_cls(cls) -> str:
        return "tiny_zoo.cpu_worker.CpuWorker"

    get_omni_generation_worker_cls = get_omni_ar_worker_cls

    @classmethod
    def get_default_stage_config_path(cls) -> str:
        return "vllm_omni/deploy"

    @classmethod
    def get_diffusion_attn_backend_cls(cls, *_args: Any, **_more: Any) -> str:
        return DiffusionAttentionBackendEnum.TORCH_SDPA.get_path()

    @classmethod
    def supports_torch_inductor(cls) -> bool:
        return False

    @classmethod
    def get_torch_device(cls, local_rank: int | None = None) -> torch.device:  # noqa: ARG003
        return torch.device("cpu")

    @classmethod
    def get_device_count(cls) -> int:
        return 1

    @classmethod
    def get_device_version(cls) -> None: ...

    @classmethod
    def get_free_memory(cls, device: Any = None) -> int:  # noqa: ARG003
        return psutil.virtual_memory().available

    @classmethod
    def get_device_memory(cls, device: Any = None) -> tuple[int, int]:  # noqa: ARG003
        memory = psutil.virtual_memory()
        return memory.available, memory.total

    @classmethod
    def _nothing(cls, *_args: Any, **_more: Any) -> None: ...

    @classmethod
    def _zero(cls, *_args: Any, **_more: Any) -> int:
        return 0

    synchronize = record_device_event = set_device_control_env_var = unset_device_control_env_var = _nothing
    reset_peak_memory_stats = empty_cache = set_device = current_stream = _nothing
    memory_reserved = max_memory_reserved = max_memory_allocated = memory_allocated = _zero
