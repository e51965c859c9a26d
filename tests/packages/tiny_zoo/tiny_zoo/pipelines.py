"""The tiny pipelines, as a package outside of vLLM-Omni defines them."""

from __future__ import annotations

from typing import Any

from vllm_omni.config.pipeline_registry import register_pipeline
from vllm_omni.config.stage_config import PipelineConfig, StageExecutionType, StagePipelineConfig
from vllm_omni.inputs.data import OmniTokensPrompt

_LLM = {"execution_type": StageExecutionType.LLM_AR, "model_subdir": "ar", "tokenizer_subdir": "ar"}

register_pipeline(PipelineConfig(
    model_type="tiny_draw", model_arch="TinyWriter", diffusers_class_name="SanaPipeline",
    stages=(
        StagePipelineConfig(
            stage_id=0, model_stage="thinker", owns_tokenizer=True, final_output=True, final_output_type="text",
            model_arch="TinyWriter", engine_output_type="text", **_LLM,
        ),
        StagePipelineConfig(
            stage_id=1, model_stage="dit", execution_type=StageExecutionType.DIFFUSION, input_sources=(0,), final_output=True,
            final_output_type="image", inline_diffusion=True, custom_process_input_func="tiny_zoo.pipelines.text_to_draw",
            omni_kv_config={"need_recv_cache": False},
        ),
    ),
))  # fmt: skip
register_pipeline(PipelineConfig(
    model_type="tiny_talk", model_arch="TinyThinker",
    stages=(
        StagePipelineConfig(
            stage_id=0, model_stage="thinker", owns_tokenizer=True, final_output=True, final_output_type="text",
            model_arch="TinyThinker", engine_output_type="latent",
            custom_process_next_stage_input_func="tiny_zoo.pipelines.states_for_talker", **_LLM,
        ),
        StagePipelineConfig(
            stage_id=1, model_stage="talker", input_sources=(0,), model_arch="TinyTalker", engine_output_type="latent",
            final_output=True, final_output_type="text", requires_full_payload_input=True,
            sync_process_input_func="tiny_zoo.pipelines.talker_prompt", **_LLM,
        ),
    ),
))  # fmt: skip


def text_to_draw(outputs: list[Any], _prompt: Any = None, _media: bool = False) -> dict[str, Any]:
    return {"prompt": outputs[0].outputs[0].text or "x"}


def states_for_talker(transfer_manager: Any, pooling_output: Any, request: Any) -> dict[str, Any]:
    """The payload; vLLM-Omni ignores a function whose parameters have other names."""
    ids = {"prompt": list(request.prompt_token_ids), "output": list(request.output_token_ids)}
    return {"embed": {"prefill": pooling_output["hidden_states.layer_0"].cpu()}, "ids": ids}


def talker_prompt(outputs: list[Any], _prompt: Any = None, _media: bool = False) -> list[OmniTokensPrompt]:
    return [
        OmniTokensPrompt(prompt_token_ids=[5] * (len(one.prompt_token_ids) + 2), multi_modal_data=None)
        for one in outputs
    ]
