"""The bodies of all endpoints share these fields, and the part of a request that is made of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import msgspec
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PrivateAttr,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, ValidationError, core_schema

from omnibus.errors import EmptyPrompt, UnsupportedModality
from omnibus.frontdoor.outbound.web_files import Fetched, NamedFile
from omnibus.frontdoor.stage_params import overridden, stage_params
from omnibus.frontdoor.unread_fields import check_unread
from omnibus.frontdoor.voices import Speaking
from omnibus.pipeline.spec import PipelineSpec
from omnibus.wire.request import Message, Request

NAME_LENGTH = 256
"""Longest name of a model or a tenant, characters."""
SEED_LIMIT = 1 << 63
PRIORITY_LIMIT = 1 << 31
MAX_STAGES = 64
"""Entries of fields that have one a stage, or one an output."""
MAX_STOPS = 256
MAX_BIASED_TOKENS = 4096
DEFAULT_TENANT = "default"


def _uploaded(value: object) -> object:
    if not isinstance(value, bytes) or not value:
        raise PydanticCustomError("file", "must be a file of a multipart/form-data body, and not empty")
    return value


Upload = Annotated[bytes, BeforeValidator(_uploaded)]
"""A file of a form."""
ModelName = Annotated[str, Field(min_length=1, max_length=NAME_LENGTH)]
"""The name of a pipeline, an alias of one, or that of its adapter."""
TokenIds = Annotated[list[int], Field(fail_fast=True)]
"""A prompt of token ids."""


@dataclass(frozen=True, slots=True)
class Matching:
    """The whole of a text matches a pattern, which the schema has; an error says it in `words`."""

    pattern: str
    words: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._checked, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(schema), "pattern": f"^({self.pattern})$"}

    def _checked(self, value: str) -> str:
        if re.fullmatch(self.pattern, value, re.ASCII) is None:
            raise PydanticCustomError("no_match", "must be {words}", {"words": self.words})
        return value


class Body(BaseModel):
    """A request's body: types are strict, and fields that are not ours are refused unless they ask for nothing."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)
    takes_forms: ClassVar[bool] = False
    """Whether it may come as multipart/form-data, too."""
    unread: ClassVar[str] = "leave it out"
    """The advice about a field that is not ours."""

    @model_validator(mode="after")
    def _check_unread(self) -> Self:
        if self.model_extra:
            check_unread(self.model_extra, type(self).__name__, self.unread)
        return self


class FileNamingBody(Body):
    """A body that may name files by their web addresses."""

    _fetched: Fetched = PrivateAttr(default_factory=dict)

    def named_files(self) -> Iterable[NamedFile]:
        """The files that the body names by web addresses; by default none."""
        return ()

    @property
    def fetched(self) -> Fetched:
        """Those that were fetched."""
        return self._fetched

    def keep_fetched(self, files: Fetched) -> None:
        """Remember the fetched files, for the request that is made of the body."""
        self._fetched = files


Answer = Mapping[str, object]
"""A response's body, a TypedDict, which OpenAPI documents: what is set goes out, None included; what is not set stays out."""
to_json = msgspec.json.Encoder().encode
"""The bytes of an answer."""


class AskingBody(FileNamingBody):
    """Fields of every body that becomes a request. The fields from `deadline` on are Omnibus's own."""

    unread: ClassVar[str] = "leave it out; what an engine knows by this name goes into sampling_params, by stage"
    called: ClassVar[Mapping[str, str]] = {}
    """The body's own names of a request's fields and of parameters, for errors."""

    model: ModelName | None = None
    user: Annotated[str, Field(max_length=NAME_LENGTH)] | None = None
    """The tenant."""
    seed: Annotated[int, Field(ge=-SEED_LIMIT, lt=SEED_LIMIT)] | None = None
    """Given to every stage that draws random numbers."""
    stream: bool | None = None
    deadline: Annotated[float, Field(gt=0)] | None = None
    """Seconds that the request may take."""
    wait: bool | None = None
    """False: refused with 503 at once where a stage has no replica up, instead of waiting for one until the deadline."""
    lane: Literal["interactive", "batch"] | None = None
    priority: Annotated[int, Field(ge=-PRIORITY_LIMIT, lt=PRIORITY_LIMIT)] | None = None
    """Lower runs earlier, where the engine schedules by priority; one above 0 takes the lane `batch` where there is one."""
    lora: str | None = None
    """The adapter of the LLM stages."""
    cache_salt: Annotated[str, Field(min_length=1)] | None = None
    """Only requests with the same salt share an LLM's prefix cache."""
    affinity: str | None = None
    """A name; requests that have the same one go to the same replicas of directed stages."""
    resumable: bool | None = None
    """The input stays open: further segments follow by `POST /v1/requests/{id}/input`."""
    mm_processor_kwargs: dict[str, Any] | None = None
    """Arguments for the processor of the media in the prompt, as in vLLM."""
    # Open by nature: each engine has its own parameters, and validates them.
    sampling_params: Annotated[dict[str, dict[str, Any]], Field(max_length=MAX_STAGES)] | None = None
    """Parameters by stage name or id; they override everything else."""
    sampling_params_list: (
        Annotated[list[dict[str, Any] | None], Field(max_length=MAX_STAGES, fail_fast=True)] | None
    ) = None
    """The same as a list in the order of the pipeline's stages."""

    def request(
        self,
        spec: PipelineSpec,
        modalities: tuple[str, ...] | None,
        *,
        text: dict[str, Any] | None = None,
        image: Mapping[str, Any] | None = None,
        video: dict[str, Any] | None = None,
        speaking: Speaking | None = None,
        **prompt: Any,
    ) -> Request:
        """The request with these parameters of text, images, videos and speech; raises RequestError naming the field.

        Only what HTTP adds is checked here; whether the pipeline can serve the request is admission's to say.
        """
        priority = self.priority or 0
        params = stage_params(spec, modalities, text=text, image=image, video=video, seed=self.seed)
        if speaking is not None:
            params = overridden(spec, params, speaking.params(spec, modalities), None)
        return Request(
            **prompt,
            modalities=modalities,
            sampling_params=overridden(spec, params, self.sampling_params, self.sampling_params_list),
            stream=bool(self.stream),
            deadline=self.deadline,
            lane=self.lane or spec.lane_of(priority),
            priority=priority,
            lora=self.lora or None,
            cache_salt=self.cache_salt,
            affinity=self.affinity,
            mm_processor_kwargs=self.mm_processor_kwargs or {},
            tenant=self.user or DEFAULT_TENANT,
            resumable=bool(self.resumable),
        )

    def field_of(self, param: str) -> str:
        """The caller's name of what a request, its admission or an engine calls `param`."""
        if param == "lora" and not self.lora:
            return "model"  # its name ends with the adapter
        for ref, values in (self.sampling_params or {}).items():
            if param in values:
                return f"sampling_params.{ref}.{param}"
        for index, given in enumerate(self.sampling_params_list or ()):
            if param in (given or {}):
                return f"sampling_params_list[{index}].{param}"
        head = re.split(r"[.\[]", param, maxsplit=1)[0]
        return self.called.get(head, param)


Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]
"""A caller's own notes about what it has made."""


class StreamOptions(Body):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    """With `include_usage`: the tokens so far in every chunk."""

    @model_validator(mode="after")
    def _check_continuous(self) -> Self:
        if self.continuous_usage_stats and not self.include_usage:
            problem = PydanticCustomError("unsupported", "needs include_usage: true")
            line = InitErrorDetails(type=problem, loc=("continuous_usage_stats",), input=True)
            raise ValidationError.from_exception_data(type(self).__name__, [line])
        return self


class VoiceObject(Body):
    """A voice as an object."""

    id: str


Voice = str | VoiceObject
"""One of those that the pipeline declares; where it declares none, any name will do."""


def voice_name(voice: Voice | None) -> str | None:
    """The name of a voice, however it is given."""
    return voice.id if isinstance(voice, VoiceObject) else voice


class TextSampling(Body):
    """Parameters of the stage that writes text, with vLLM's names."""

    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: int | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    stop: str | Annotated[list[str], Field(max_length=MAX_STOPS, fail_fast=True)] | None = None
    stop_token_ids: Annotated[list[int], Field(max_length=MAX_STOPS, fail_fast=True)] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    bad_words: Annotated[list[str], Field(max_length=MAX_STOPS, fail_fast=True)] | None = None
    allowed_token_ids: Annotated[list[int], Field(max_length=MAX_BIASED_TOKENS, fail_fast=True)] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=MAX_BIASED_TOKENS)] | None = None

    def chosen(self) -> dict[str, Any]:
        """Parameters that were given, by vLLM's names."""
        return {name: value for name in TextSampling.model_fields if (value := getattr(self, name)) is not None}


def check_modality(spec: PipelineSpec, modality: str) -> None:
    """Raises UnsupportedModality when the pipeline does not deliver it."""
    if modality not in spec.modalities:
        produced = ", ".join(spec.modalities)
        message = f"model {spec.name!r} does not produce {modality!r}; it produces {produced}"
        raise UnsupportedModality(message, param="model")


def single_turn(text: str, param: str) -> tuple[Message, ...]:
    """A text as a chat of one turn: the first stage applies its template where it has one. Raises EmptyPrompt."""
    if not text.strip():
        raise EmptyPrompt(param=param)
    return (Message(role="user", content=text),)
