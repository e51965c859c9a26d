"""What the bodies of all endpoints share."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

NAME_LENGTH = 256
"""Longest name of a model or a tenant, characters."""
SEED_LIMIT = 1 << 63
PRIORITY_LIMIT = 1 << 31


class Body(BaseModel):
    """A request's body: types are strict, and fields that are not ours are let through unread."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class Answer(BaseModel):
    """A response's body: what is set goes out, None included; what is not set stays out."""

    model_config = ConfigDict(frozen=True)

    def json_text(self) -> str:
        return self.model_dump_json(exclude_unset=True)


def only(*allowed: Hashable) -> AfterValidator:
    """Accept a field that other servers have, but only with values that ask for nothing (None and empty ones always do)."""
    return AfterValidator(_checker(allowed))


def _checker(allowed: tuple[Hashable, ...]) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        asks_nothing = value is None or value is False or value in ("", [], {})
        if asks_nothing or value in allowed:
            return value
        if not allowed:
            raise PydanticCustomError("unsupported", "not supported; leave it out")
        choice = " or ".join(repr(one) for one in allowed)
        raise PydanticCustomError("unsupported", "only {choice} is supported", {"choice": choice})

    return check


Unsupported = Annotated[Any, only()]
"""A field whose effect this server does not have."""


class AskingBody(Body):
    """What every body that becomes a request may hold. The fields from `deadline` on are Omnibus's own."""

    model: Annotated[str, Field(min_length=1, max_length=NAME_LENGTH)] | None = None
    user: Annotated[str, Field(max_length=NAME_LENGTH)] | None = None
    """The tenant."""
    seed: Annotated[int, Field(ge=-SEED_LIMIT, lt=SEED_LIMIT)] | None = None
    """Given to every stage that draws random numbers."""
    stream: bool | None = None
    deadline: Annotated[float, Field(gt=0)] | None = None
    """Seconds that the request may take."""
    lane: Literal["interactive", "batch"] | None = None
    priority: Annotated[int, Field(ge=-PRIORITY_LIMIT, lt=PRIORITY_LIMIT)] | None = None
    """Lower runs earlier, where the engine schedules by priority."""
    cache_salt: Annotated[str, Field(min_length=1)] | None = None
    """Only requests with the same salt share an LLM's prefix cache."""
    affinity: str | None = None
    """A name; requests that have the same one go to the same replicas of directed stages."""
    mm_processor_kwargs: dict[str, Any] | None = None
    """Arguments for the processor of the media in the prompt, as in vLLM."""
    # Open by nature: each engine has its own parameters, and validates them.
    sampling_params: dict[str, dict[str, Any]] | None = None
    """Parameters by stage name or id; they override everything else."""
    sampling_params_list: list[dict[str, Any] | None] | None = None
    """The same as a list in the order of the pipeline's stages."""


class StreamOptions(Body):
    include_usage: bool | None = None


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
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    logit_bias: dict[str, float] | None = None

    def chosen(self) -> dict[str, Any]:
        """Parameters that were given, by vLLM's names."""
        return {name: value for name in TextSampling.model_fields if (value := getattr(self, name)) is not None}


class Usage(Answer):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ErrorDetail(Answer):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(Answer):
    """How every error looks."""

    error: ErrorDetail
