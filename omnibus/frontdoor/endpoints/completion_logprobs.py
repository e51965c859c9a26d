"""Probabilities of tokens in the shape of `/v1/completions`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from typing_extensions import TypedDict


class CompletionLogprobs(TypedDict):
    """One entry a token in each list."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]
    """Characters before the token."""


def completion_logprobs(entries: Iterable[Mapping[str, Any]], offset: int = 0) -> CompletionLogprobs:
    """The tokens of a field of `logprobs`, or of a piece of one that begins behind `offset` characters."""
    made = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
    for entry in entries:
        logprob = entry["logprob"]
        top = {one["token"]: one["logprob"] for one in entry["top_logprobs"]}
        made["tokens"].append(entry["token"])
        made["token_logprobs"].append(logprob)
        made["top_logprobs"].append(None if logprob is None else {**top, entry["token"]: logprob})
        made["text_offset"].append(offset)
        offset += len(entry["token"])
    return made
