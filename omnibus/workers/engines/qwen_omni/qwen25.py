"""Talker and vocoder of Qwen2.5-Omni. The vocoder draws the whole sound out of noise: nothing of it leaves before."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen2_5OmniConfig, Qwen2_5OmniForConditionalGeneration
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import (
    Qwen2_5OmniPreTrainedModel,
    Qwen2_5OmniRMSNorm,
    Qwen2_5OmniTalkerForConditionalGeneration,
    Qwen2_5OmniToken2WavModel,
)
from transformers.utils import cached_file

from omnibus.errors import CheckpointMissing, EngineRejected
from omnibus.workers.engines.checkpoints import resolve_model
from omnibus.workers.engines.protocol import Outputs, StageInput
from omnibus.workers.engines.qwen_omni.stand_ins import (
    SAMPLE_RATE,
    CodesTaker,
    OwnParts,
    ReplayedThinker,
    Thought,
    load_parts,
    talker_arguments,
)

SPEAKER = "Chelsie"
"""The speaker of a request that names none."""


class _Qwen25TalkerParts(OwnParts, Qwen2_5OmniForConditionalGeneration):  # type: ignore[misc]  # transformers has no types here
    """The whole model with stand-ins for all but the talker, which listens to the thinker's last layer after its norm."""

    _keys_to_ignore_on_load_unexpected = (r"^thinker\.", r"^token2wav\.")

    def __init__(self, config: Qwen2_5OmniConfig) -> None:
        Qwen2_5OmniPreTrainedModel.__init__(self, config)
        text = config.thinker_config.text_config
        self.thinker = ReplayedThinker(text, 1, Qwen2_5OmniRMSNorm(text.hidden_size, eps=text.rms_norm_eps))
        self.talker = Qwen2_5OmniTalkerForConditionalGeneration(config.talker_config)
        self.token2wav, self.has_talker = CodesTaker(), True
        self.speaker_map: dict[str, dict[str, Any]] = {}
        self.post_init()

    @classmethod
    def from_pretrained(cls, *arguments: Any, **named: Any) -> Any:
        """Load the weights alone: the speakers are a file of their own."""
        return super(Qwen2_5OmniForConditionalGeneration, cls).from_pretrained(*arguments, **named)


class _Qwen25VocoderParts(OwnParts, Qwen2_5OmniPreTrainedModel):  # type: ignore[misc]
    """The vocoder alone, under the name that it has in the checkpoint."""

    config_class = Qwen2_5OmniConfig
    _keys_to_ignore_on_load_unexpected = (r"^thinker\.", r"^talker\.")

    def __init__(self, config: Qwen2_5OmniConfig) -> None:
        super().__init__(config)
        self.token2wav = Qwen2_5OmniToken2WavModel(config.token2wav_config)
        self.post_init()


class Qwen25Talker:
    """Makes `codes` (T,) of what the thinker's stage made, for a `speaker`. One request at a time."""

    outputs: Mapping[str, str] = {"codes": "tensor", "speaker": "text"}

    def __init__(self, checkpoint: str, device: str | None = None, dtype: str | None = None) -> None:
        self._model = load_parts(_Qwen25TalkerParts, checkpoint, device, dtype)
        self._model.speaker_map = _speakers(checkpoint)

    def __call__(self, stage_input: StageInput, sampling: Mapping[str, Any]) -> Outputs:
        config, thought = self._model.config.thinker_config, Thought.of(stage_input)
        thought.check_speakable(config.image_token_id, config.video_token_id)
        arguments = {"speaker": SPEAKER, **talker_arguments(sampling)}
        if arguments["speaker"] not in self._model.speaker_map:
            raise EngineRejected(f"no such speaker; there are {', '.join(self._model.speaker_map)}", param="speaker")
        self._model.thinker.thought = thought
        prompt = torch.tensor([thought.prompt], device=self._model.device)
        if config.audio_token_id in thought.prompt:  # the talker does not hear what was put in there
            arguments["input_features"] = prompt
        self._model.generate(prompt, attention_mask=torch.ones_like(prompt), **arguments)
        return {"codes": self._model.token2wav.codes[0].cpu().numpy(), "speaker": arguments["speaker"]}


class Qwen25Vocoder:
    """Makes sound of codes, in float32, by ten steps of diffusion; `seed` chooses their noise."""

    outputs: Mapping[str, str] = {"audio": "audio", "sample_rate": "json"}

    def __init__(self, checkpoint: str, device: str | None = None) -> None:
        self._decoder = load_parts(_Qwen25VocoderParts, checkpoint, device, "float32").token2wav
        self._speakers = _speakers(checkpoint)

    def __call__(self, stage_input: StageInput, sampling: Mapping[str, Any]) -> Outputs:
        (made,) = stage_input.sources.values()
        unknown = next((name for name in sampling if name != "seed"), None)
        if unknown is not None:
            raise EngineRejected(f"unknown parameter {unknown!r}: this stage takes seed", param=unknown)
        if sampling.get("seed") is not None:
            torch.manual_seed(int(sampling["seed"]))
        speaker, device = self._speakers[made["speaker"]], self._decoder.device
        with torch.inference_mode():
            wave = self._decoder(
                torch.from_numpy(np.array(made["codes"]))[None].to(device),
                conditioning=speaker["cond"].to(device).float(),
                reference_mel=speaker["ref_mel"].to(device).float(),
            )
        return {"audio": wave.float().cpu().numpy().reshape(-1), "sample_rate": SAMPLE_RATE}


def _speakers(checkpoint: str) -> dict[str, dict[str, Any]]:
    """The sound of each speaker: the file beside the weights, read as tensors only."""
    model = resolve_model(checkpoint)
    found = cached_file(model, "spk_dict.pt", _raise_exceptions_for_missing_entries=False)
    if found is None:
        raise CheckpointMissing(f"the checkpoint {checkpoint!r} is incomplete: it lacks spk_dict.pt")
    speakers: dict[str, dict[str, Any]] = torch.load(Path(found), map_location="cpu", weights_only=True)
    return speakers
