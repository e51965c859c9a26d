"""Models of the tiny pipelines: omni-tiny's thinker, which is a Qwen3, and what it hands on or takes."""

from __future__ import annotations

from typing import Any

from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM
from vllm_omni.model_executor.models.output_templates import OmniOutput


class TinyWriter(Qwen3ForCausalLM):
    """A model that ignores what vLLM-Omni's runner passes besides tokens."""

    def forward(
        self, input_ids=None, positions=None, intermediate_tensors=None, inputs_embeds=None, **_more: Any
    ) -> Any:
        return super().forward(input_ids, positions, intermediate_tensors, inputs_embeds)


class TinyThinker(TinyWriter):
    """Hands its states to the next stage."""

    have_multimodal_outputs = True

    def forward(self, *args: Any, **more: Any) -> OmniOutput:
        states = super().forward(*args, **more)
        return OmniOutput(text_hidden_states=states, multimodal_outputs={"hidden_states": {"layers": {0: states}}})


class TinyTalker(TinyWriter):
    """Speaks of the states that it was handed: another payload, another text. It runs one request at a time."""

    have_multimodal_outputs = True

    def forward(self, *args: Any, **more: Any) -> OmniOutput:
        states = super().forward(*args, **more)
        for info in more.get("model_intermediate_buffer") or more.get("runtime_additional_information") or ():
            given = (info.get("embed") or {}).get("prefill") if isinstance(info, dict) else None
            if given is not None:  # whole numbers: other sums of the same states may differ in the last digits
                states = states.roll(int(given.argmax(-1).sum()) % states.shape[-1], -1)
        return OmniOutput(text_hidden_states=states, multimodal_outputs={})
