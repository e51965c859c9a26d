"""`/v1/completions`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from omnibus.frontdoor.schemas.common import (
    Answer,
    AskingBody,
    StreamOptions,
    TextSampling,
    Unsupported,
    Usage,
    only,
)


class CompletionBody(AskingBody, TextSampling):
    """A prompt to continue: one text, or the token ids of one."""

    prompt: str | list[int] | list[str] | list[list[int]]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int | None, only(1)] = None
    best_of: Annotated[int | None, only(1)] = None
    echo: Unsupported = None
    suffix: Unsupported = None
    logprobs: Unsupported = None


class CompletionChoice(Answer):
    index: int
    text: str
    logprobs: None
    finish_reason: str | None


class Completion(Answer):
    """A whole answer, or a piece of it in a stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
