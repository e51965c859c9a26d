"""The classes of transformers that speak, and the one that a stage's checkpoint is of. Imports transformers and torch."""

from __future__ import annotations

from collections.abc import Mapping

from omnibus.errors import PipelineError
from omnibus.pipeline.spec import StageSpec
from omnibus.workers.engines.transformers.dia_speaker import DiaSpeaker
from omnibus.workers.engines.transformers.loaded_model import architecture
from omnibus.workers.engines.transformers.speakers import (
    CsmSpeaker,
    MusicgenSpeaker,
    Speaker,
    SpeechT5Speaker,
    VitsSpeaker,
)

SPEAKERS: Mapping[str, type[Speaker]] = {
    "CsmForConditionalGeneration": CsmSpeaker,
    "DiaForConditionalGeneration": DiaSpeaker,
    "MusicgenForConditionalGeneration": MusicgenSpeaker,
    "SpeechT5ForTextToSpeech": SpeechT5Speaker,
    "VitsModel": VitsSpeaker,
}


def speaker_of(stage: StageSpec) -> Speaker:
    """The model of a stage that speaks; raises PipelineError for a class that cannot, and as `load_model`."""
    kind = str(stage.engine_args.get("model_class") or architecture(stage))
    if kind not in SPEAKERS:
        raise PipelineError(
            f"{kind} is none of the classes that speak: {', '.join(SPEAKERS)}", field="engine_args.model_class"
        )
    return SPEAKERS[kind](stage, kind)
