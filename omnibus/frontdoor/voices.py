"""How a text is to be spoken: what a caller asks for as parameters of the stages that say what they can. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from omnibus.errors import InvalidRequest
from omnibus.frontdoor.stage_params import StageParams
from omnibus.pipeline.routing import plan_route
from omnibus.pipeline.spec import PipelineSpec, SpeechSpec


@dataclass(frozen=True, slots=True)
class Speaking:
    """A caller's choices; None, or a speed of 1: as the pipeline speaks by itself."""

    voice: str | None = None
    instructions: str | None = None
    speed: float | None = None

    def params(
        self, spec: PipelineSpec, modalities: tuple[str, ...] | None, *, voice_field: str = "voice"
    ) -> StageParams:
        """The parameters of the stages that run; raises InvalidRequest for an unknown voice, and for what no stage can.

        A pipeline without voices has the one that it has: clients must name one, and any name will do.
        """
        able = list(_able(spec, modalities))
        params: StageParams = {name: {} for name, _ in able}
        for name, speech in able:
            if self.voice is not None and self.voice in speech.voices:
                params[name] |= speech.voices[self.voice]
        known = _listed(speech for _, speech in able)
        if self.voice is not None and known and self.voice not in known:
            raise InvalidRequest(
                f"there is no voice {self.voice[:80]!r}; there are {', '.join(known)}", param=voice_field
            )
        for field, value in (
            ("instructions", self.instructions or None),
            ("speed", None if self.speed == 1 else self.speed),
        ):
            if value is not None:
                _give(params, able, field, value)
        return {name: values for name, values in params.items() if values}


def voices_of(spec: PipelineSpec) -> list[str]:
    """The voices that a pipeline declares, in their order."""
    return _listed(stage.speech for stage in spec.stages if stage.speech is not None)


def _able(spec: PipelineSpec, modalities: tuple[str, ...] | None) -> Iterator[tuple[str, SpeechSpec]]:
    for routed in plan_route(spec, modalities).stages:
        stage = spec.stage(routed.stage_id)
        if stage.speech is not None:
            yield stage.name, stage.speech


def _listed(speeches: Iterator[SpeechSpec]) -> list[str]:
    return list(dict.fromkeys(voice for speech in speeches for voice in speech.voices))


def _give(params: StageParams, able: list[tuple[str, SpeechSpec]], field: str, value: Any) -> None:
    taking = [(name, parameter) for name, speech in able if (parameter := getattr(speech, field)) is not None]
    if not taking:
        raise InvalidRequest(f"no stage of this pipeline takes {field}: leave it out", param=field)
    for name, parameter in taking:
        params[name][parameter] = value
