"""Dia: a dialogue in codes, each codebook a little later than the one before, which its processor decodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import torch
import transformers
from msgspec import Meta

from omnibus.errors import EngineRejected
from omnibus.pipeline.spec import StageSpec
from omnibus.workers.engines.checkpoints import loading, resolve_model
from omnibus.workers.engines.protocol import EngineInput
from omnibus.workers.engines.transformers.generation_engine import Step
from omnibus.workers.engines.transformers.speakers import SAMPLING, SEED, Sending, Speaker


class DiaSpeaker(Speaker):
    """Dia with the codec that its processor names; the sound is whole when its last codebook is."""

    parameters: Mapping[str, Any] = {
        **SEED, **{name: SAMPLING[name] for name in ("do_sample", "temperature", "top_k", "top_p")},
        "guidance_scale": Annotated[float, Meta(ge=1, le=1000)], "max_new_tokens": Annotated[int, Meta(ge=1)],
    }  # fmt: skip
    vocabulary = "encoder_config.vocab_size"
    positions = "encoder_config.max_position_embeddings"

    def __init__(self, stage: StageSpec, kind: str) -> None:
        model = resolve_model(stage.model, stage.revision)
        with loading(model, stage.revision):
            self._processor = transformers.DiaProcessor.from_pretrained(model, revision=stage.revision)
        super().__init__(stage, kind)
        self._processor.audio_tokenizer.to(self._model.device)
        # The decoder's first codes are the same for every text.
        self._start = {
            name: value.to(self._model.device)
            for name, value in self._processor(text=["[S1]"], padding=False).items()
            if name.startswith("decoder_")
        }

    def _rate(self) -> int:
        return int(self._processor.audio_tokenizer.config.sampling_rate)

    def _prompt(self, text: str) -> str:
        """Its texts begin with a speaker."""
        return text if text.startswith("[S") else f"[S1] {text}"

    def _given(self, engine_input: EngineInput, options: dict[str, Any]) -> Mapping[str, Any]:
        if 0 < options.get("temperature", 1.0) < 1:
            raise EngineRejected("Dia takes a temperature of 1 or more, or 0", param="temperature")
        late = max(self._model.config.delay_pattern)
        if options.get("max_new_tokens", late + 2) < late + 2:
            raise EngineRejected(f"its last codebook is {late} tokens late: give more", param="max_new_tokens")
        return super()._given(engine_input, options)

    def _spoken(self, ids: torch.Tensor, options: Mapping[str, Any], step: Step, _send: Sending) -> np.ndarray:
        start = {name: value.clone() for name, value in self._start.items()}  # `generate` writes into them
        codes = self._generated(ids, options, step, **start)
        samples: np.ndarray = self._processor.decode(codes).float().cpu().numpy()
        return np.atleast_1d(samples)
