"""The worker of vLLM-Omni's autoregressive stages, on vLLM's for CPU."""

from __future__ import annotations

from typing import Any

from vllm.v1.worker import cpu_model_runner
from vllm.v1.worker.cpu_worker import CPUWorker
from vllm_omni.worker.gpu_ar_model_runner import GPUARModelRunner
from vllm_omni.worker.mixins import OmniWorkerMixin


class CpuRunner(GPUARModelRunner, cpu_model_runner.CPUModelRunner):
    """vLLM-Omni's runner with the CPU's way to load and to copy."""

    def __init__(self, vllm_config: Any, device: Any) -> None:
        if hasattr(cpu_model_runner, "_set_torch_accelerator_to_noop"):
            cpu_model_runner._set_torch_accelerator_to_noop()
        with cpu_model_runner._torch_cuda_wrapper():
            GPUARModelRunner.__init__(self, vllm_config, device)
        self.use_cuda_graph = False
        self._postprocess_tensors()

    load_model = cpu_model_runner.CPUModelRunner.load_model
    warming_up_model = cpu_model_runner.CPUModelRunner.warming_up_model
    _sync_device = cpu_model_runner.CPUModelRunner._sync_device
    _to_list = cpu_model_runner.CPUModelRunner._to_list


class CpuWorker(OmniWorkerMixin, CPUWorker):
    """The worker."""

    model_runner_cls = CpuRunner

    def init_device(self) -> None:
        super().init_device()
        self.model_runner = CpuRunner(self.vllm_config, self.device)
