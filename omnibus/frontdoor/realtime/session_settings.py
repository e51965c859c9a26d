"""The settings of a session and of a response: checked, merged with an update, and made parameters of a request. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from omnibus.errors import InvalidRequest, UnsupportedModality
from omnibus.frontdoor.bodies import Body, Voice, voice_name
from omnibus.frontdoor.stage_params import StageParams, overridden, stage_params
from omnibus.frontdoor.voices import Speaking
from omnibus.pipeline.engines import engine_kind
from omnibus.pipeline.routing import plan_route
from omnibus.pipeline.spec import PipelineSpec

_MAX_WORD = 256
_MEANT = frozenset({"turn_detection"})
"""Settings that a null turns off."""
_NAMES = {"max_tokens": "max_output_tokens", "voice": "audio.output.voice", "speed": "audio.output.speed"}
"""Names of settings, by those of parameters."""
Modality = Literal["text", "audio"]
_Modalities = Annotated[list[Modality], Field(min_length=1, max_length=2)]
_Tokens = Annotated[int, Field(ge=1)] | Literal["inf"]


class _Settings(Body):
    """Settings whose nulls say nothing, as those do that clients send for what they leave out."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, sent: object) -> object:
        if not isinstance(sent, dict):
            return sent
        return {name: value for name, value in sent.items() if value is not None or name in _MEANT}


class PcmFormat(_Settings):
    """Samples of 16 bits, little-endian, mono."""

    type: Literal["audio/pcm"] = "audio/pcm"
    rate: Literal[24000] = 24000


class ServerVad(_Settings):
    """Turns are found by loudness."""

    type: Literal["server_vad"]
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    prefix_padding_ms: Annotated[int, Field(ge=0, le=10_000)] = 300
    """Sound before the speech that belongs to the turn."""
    silence_duration_ms: Annotated[int, Field(ge=20, le=60_000)] = 500
    create_response: bool = True
    """Answer each turn."""
    interrupt_response: bool = True
    """Speech cancels the answer that is being made."""


class InputSettings(_Settings):
    format: PcmFormat = PcmFormat()
    turn_detection: ServerVad | None = None


class OutputSettings(_Settings):
    format: PcmFormat = PcmFormat()
    voice: Voice | None = None
    speed: Annotated[float, Field(ge=0.25, le=1.5)] | None = None
    """Where a stage takes it."""

    @property
    def speaking(self) -> Speaking:
        return Speaking(voice=voice_name(self.voice), speed=self.speed)


class AudioSettings(_Settings):
    input: InputSettings = InputSettings()
    output: OutputSettings = OutputSettings()


class ResponseOutput(_Settings):
    output: OutputSettings = OutputSettings()


class Asked(_Settings):
    """Settings of every answer."""

    output_modalities: _Modalities | None = None
    """`audio` brings its transcript along where the pipeline writes text, too."""
    instructions: str | None = None
    """The first message, of the system."""
    max_output_tokens: _Tokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None

    @property
    def spoken(self) -> OutputSettings:
        """How its sound is spoken."""
        return OutputSettings()


class AskedOnce(Asked):
    """The settings of one answer, its session's and its own."""

    output: OutputSettings = OutputSettings()

    @property
    def spoken(self) -> OutputSettings:
        return self.output


class ResponseSettings(Asked):
    """Settings of one response; those that it leaves out are the session's."""

    conversation: Literal["auto"] | None = None
    metadata: dict[str, Annotated[str, Field(max_length=512)]] | None = None
    """Comes back with the response."""
    audio: ResponseOutput | None = None


class SessionSettings(Asked):
    """Settings of a session."""

    type: Literal["realtime"] = "realtime"
    id: Annotated[str, Field(max_length=_MAX_WORD)] | None = None
    object: Literal["realtime.dialogue"] | None = None
    model: Annotated[str, Field(max_length=_MAX_WORD)] | None = None
    """The session's own, which does not change."""
    audio: AudioSettings = AudioSettings()
    truncation: Literal["disabled"] | None = None

    @classmethod
    def of(cls, spec: PipelineSpec) -> Self:
        """The settings that a session begins with: it speaks, and listens, where the pipeline does."""
        audio = AudioSettings(
            input=InputSettings(turn_detection=ServerVad(type="server_vad") if takes_sound(spec) else None)
        )
        modality: Modality = "audio" if "audio" in spec.modalities else "text"
        return cls(output_modalities=[modality], instructions="", max_output_tokens="inf", audio=audio)

    def updated(self, update: Self) -> Self:
        """These settings with those that an update names in their place."""
        return type(self).model_validate(_merged(self.model_dump(), update.model_dump(exclude_unset=True)))

    @property
    def spoken(self) -> OutputSettings:
        return self.audio.output

    def asked(self, response: ResponseSettings) -> AskedOnce:
        """The settings of one response of this session."""
        said = {} if response.audio is None else response.audio.output.model_dump(exclude_unset=True)
        output = OutputSettings.model_validate(_merged(self.audio.output.model_dump(), said))
        return AskedOnce(output=output, **{
            name: getattr(self, name) if (own := getattr(response, name)) is None else own for name in Asked.model_fields
        })  # fmt: skip

    def shown(self, model: str, session_id: str) -> dict[str, Any]:
        """The session in events."""
        settings = self.model_dump(exclude={"id", "object", "model"})
        return {**settings, "id": session_id, "object": "realtime.dialogue", "model": model, "tools": []}


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    both = {name for name, value in new.items() if isinstance(value, dict) and isinstance(old.get(name), dict)}
    return {**old, **new, **{name: _merged(old[name], new[name]) for name in both}}


def takes_sound(spec: PipelineSpec) -> bool:
    """Whether the first stages of a pipeline take sound."""
    first = [stage for stage in spec.stages if not stage.input_sources]
    return any("audio" in engine_kind(stage.engine).media_of(stage.engine_args) for stage in first)


def wanted(spec: PipelineSpec, asked: Asked) -> tuple[str, ...]:
    """The outputs that settings ask a pipeline for; raises UnsupportedModality."""
    modalities = set(asked.output_modalities or ())
    missing = sorted(modalities - set(spec.modalities))
    if missing:
        made = ", ".join(spec.modalities)
        raise UnsupportedModality(f"{spec.name!r} makes no {missing[0]}; it makes {made}", param="output_modalities")
    transcribed = {"text"} & set(spec.modalities) if "audio" in modalities else set[str]()
    return tuple(sorted(modalities | transcribed, reverse=True))


def parameters(spec: PipelineSpec, asked: Asked) -> StageParams:
    """Parameters of the stages of an answer; raises InvalidRequest for one that no stage reads, and as `wanted`."""
    limit = asked.max_output_tokens if asked.max_output_tokens != "inf" else None
    given = {"max_tokens": limit, "temperature": asked.temperature}
    modalities = wanted(spec, asked)
    plan_route(spec, modalities)
    try:
        params = stage_params(spec, modalities, text={name: one for name, one in given.items() if one is not None})
        spoken = asked.spoken.speaking.params(spec, modalities) if "audio" in modalities else {}
    except InvalidRequest as error:
        error.param = _NAMES.get(error.param or "", error.param)
        raise
    return overridden(spec, params, spoken, None)
