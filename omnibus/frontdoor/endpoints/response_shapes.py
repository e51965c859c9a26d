"""Shapes of the answers of `/v1/responses`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from typing_extensions import TypedDict


class CachedDetails(TypedDict):
    cached_tokens: int
    """Tokens of the input that the engine had already."""
    cache_write_tokens: int


class ReasoningDetails(TypedDict):
    reasoning_tokens: int
    """Always 0: they are among the output's, and not counted apart."""


class ResponseUsage(TypedDict):
    input_tokens: int
    input_tokens_details: CachedDetails
    output_tokens: int
    output_tokens_details: ReasoningDetails
    total_tokens: int


class ResponseFault(TypedDict):
    """Why a response failed."""

    code: str
    """server_error, rate_limit_exceeded or invalid_prompt, as OpenAI's clients know them."""
    message: str
    type: str
    """The error's code, as other routes have it."""
    param: str | None


class IncompleteDetails(TypedDict):
    reason: Literal["max_output_tokens", "content_filter"]


class ResponseObject(TypedDict):
    """A response, made or in the making. Times are seconds since the epoch."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["queued", "in_progress", "completed", "failed", "cancelled", "incomplete"]
    model: str
    output: list[Mapping[str, Any]]
    """Items: message, reasoning, function_call, image_generation_call."""
    usage: ResponseUsage | None
    error: ResponseFault | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    previous_response_id: str | None
    background: bool
    store: bool
    metadata: Mapping[str, str]
    tools: list[Mapping[str, Any]]
    tool_choice: str | Mapping[str, Any]
    parallel_tool_calls: bool
    text: Mapping[str, Any]
    reasoning: Mapping[str, Any] | None
    temperature: float | None
    top_p: float | None
    max_output_tokens: int | None
    top_logprobs: int | None
    truncation: Literal["disabled"]
    service_tier: Literal["default"]
    user: str | None
    prompt_cache_key: str | None
    safety_identifier: str | None


class InputItemList(TypedDict):
    object: Literal["list"]
    data: list[Mapping[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedResponse(TypedDict):
    id: str
    object: Literal["response"]
    deleted: Literal[True]
