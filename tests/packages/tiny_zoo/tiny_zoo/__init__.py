"""Tiny pipelines for vLLM-Omni, and a platform that runs them on CPU, which it has not itself."""

from __future__ import annotations


def platform() -> str:
    """The entry of the platform plugin."""
    return "tiny_zoo.cpu_platform.CpuOmniPlatform"


def register() -> None:
    """Make the models known; vLLM calls it in each of its processes."""
    from vllm import ModelRegistry  # noqa: PLC0415 vLLM has set itself up when it calls this
    from vllm_omni.model_executor.models.registry import OmniModelRegistry  # noqa: PLC0415

    from tiny_zoo import models  # noqa: PLC0415

    # The classes, not their names: vLLM imports itself in another process to look at one that it has the name of.
    for model in (models.TinyWriter, models.TinyThinker, models.TinyTalker):
        for registry in (OmniModelRegistry, ModelRegistry):
            registry.register_model(model.__name__, model)
