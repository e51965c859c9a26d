"""Fields of an answer beside its text: reasoning, calls of tools, probabilities of tokens, further choices.

Each field is a text that grows by its end, as the answer's text does, and so they travel alike: pieces with offsets, fenced,
repeated and put together by the same rules. A field whose value is no text is written as one: a name whole, a list as lines
of JSON. Receivers pass over names that they do not know, so that a later version can add some.

The names: `reasoning`; `tool_calls.0.id`, `tool_calls.0.name`, `tool_calls.0.arguments` (JSON) of each call; `logprobs`, a
line of JSON for each token, `{token, logprob, bytes, top_logprobs}`; `prompt_logprobs`, JSON. Those of the further choices of
a request for several begin with the choice's number, and they have two more: `1.text`, `1.finish_reason`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from omnibus.wire.request import FunctionCall, ToolCall

REASONING, LOGPROBS, PROMPT_LOGPROBS = "reasoning", "logprobs", "prompt_logprobs"
TEXT, FINISH_REASON = "text", "finish_reason"
"""Fields of the further choices; the first one's are the output's own."""
CALL_PARTS = ("id", "name", "arguments")


def of_choice(index: int, name: str) -> str:
    """The name of a field in the choice with this number."""
    return name if index == 0 else f"{index}.{name}"


def choice_of(name: str) -> tuple[int, str]:
    """The number of a field's choice, and its name in that choice."""
    head, _, rest = name.partition(".")
    return (int(head), rest) if head.isdecimal() else (0, name)


def call_field(index: int, part: str) -> str:
    """The name of a field of a call: `part` is one of CALL_PARTS."""
    return f"tool_calls.{index}.{part}"


def call_of(name: str) -> tuple[int, str] | None:
    """The number of the call that a field belongs to, and its part; None for another field."""
    head, _, rest = name.partition(".")
    index, _, part = rest.partition(".")
    return (int(index), part) if head == "tool_calls" and index.isdecimal() and part in CALL_PARTS else None


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """One answer to a request, typed."""

    index: int
    text: str
    finish_reason: str
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[Mapping[str, Any], ...] | None = None
    """`{token, logprob, bytes, top_logprobs}` of each token, where they were asked for."""


def choices(text: str, finish_reason: str, fields: Mapping[str, str]) -> tuple[Choice, ...]:
    """All answers: the first has the output's own text and finish reason."""
    by_choice: dict[int, dict[str, str]] = {0: {TEXT: text, FINISH_REASON: finish_reason}}
    for name, value in fields.items():
        index, own = choice_of(name)
        by_choice.setdefault(index, {})[own] = value
    return tuple(_choice(index, own) for index, own in sorted(by_choice.items()))


def logprobs_in(lines: str) -> tuple[Mapping[str, Any], ...]:
    """The tokens in a field of LOGPROBS, or in a piece of one: pieces end with a line."""
    return tuple(json.loads(line) for line in lines.splitlines() if line)


def _choice(index: int, own: Mapping[str, str]) -> Choice:
    return Choice(
        index=index,
        text=own.get(TEXT, ""),
        finish_reason=own.get(FINISH_REASON, "stop"),
        reasoning=own.get(REASONING),
        tool_calls=tuple(_calls(own)),
        logprobs=logprobs_in(own[LOGPROBS]) if LOGPROBS in own else None,
    )


def _calls(own: Mapping[str, str]) -> Iterator[ToolCall]:
    calls: dict[int, dict[str, str]] = {}
    for name, value in own.items():
        if (found := call_of(name)) is not None:
            calls.setdefault(found[0], {})[found[1]] = value
    for _, parts in sorted(calls.items()):
        function = FunctionCall(name=parts.get("name", ""), arguments=parts.get("arguments", ""))
        yield ToolCall(id=parts.get("id", ""), function=function)
