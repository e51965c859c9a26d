"""Sampling parameters of the vLLM engine: which there are, and what is wrong with those of a request. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from omnibus.errors import ContextExceeded, EngineRejected
from omnibus.wire.sampling import FIELDS

GREEDY_BELOW = 1e-5
"""Temperatures below it choose the likeliest token; vLLM's `_SAMPLING_EPS`."""
LOOK_BACK = ("presence_penalty", "frequency_penalty", "bad_words", "extra_args")
"""Parameters under which a token depends on which of those before it were generated, and not only on the text. A repetition
penalty counts the prompt too; `extra_args` may set anything."""
BESIDE_TOKENS = ("structured_outputs", "logprobs", "prompt_logprobs", "echo")
"""Parameters under which an answer is more than the text of its tokens."""
PROMPT_LENGTHS = ("input_text", "input_tokens")
"""Names, in vLLM's errors, of the length of a prompt that the context does not hold."""
NOT_WITH_STATES = ("min_p", "logit_bias")
"""Parameters that vLLM does not apply while it extracts hidden states, which it does as a kind of speculative decoding."""


def continues(sampling: Mapping[str, Any]) -> bool:
    """Whether a text is to be continued after its first tokens as after a prompt; else it is made again from the start.

    Greedy texts are continued where that gives the same text. Seeded ones begin again: nothing sets a generator forward, and
    the same seed gives the same text. Unseeded ones are continued, since a second attempt would say something else.
    """
    if is_made_at_once(sampling):
        return False
    if sampling.get("temperature", 1.0) >= GREEDY_BELOW:
        return sampling.get("seed") is None
    return not any(sampling.get(name) for name in LOOK_BACK)


def is_made_at_once(sampling: Mapping[str, Any]) -> bool:
    """Whether an answer is made from its beginning by every attempt: what belongs to its tokens is more than their text.

    A grammar and the choices have a state in the engine, and probabilities are known of those tokens alone that it makes.
    """
    return sampling.get("n", 1) > 1 or any(_is_set(sampling.get(name)) for name in BESIDE_TOKENS)


def check_sampling(sampling: Mapping[str, Any], *, extracts: bool = False) -> dict[str, Any]:
    """Check names and types; raises EngineRejected naming the field. Ranges are vLLM's own to check.

    `extracts`: hidden states are an output of the stage.
    """
    checked = {name: _converted(name, value) for name, value in sampling.items()}
    excluded = next((name for name in NOT_WITH_STATES if extracts and checked.get(name)), None)
    if excluded is not None:
        message = f"{excluded} cannot be used here: the stage's hidden states are an output, and vLLM applies no {excluded} then"
        raise EngineRejected(message, param=excluded)
    if extracts and checked.get("n", 1) != 1:
        raise EngineRejected("n must be 1 here: the stage's hidden states are an output, those of one text", param="n")
    return checked


def fit_context(sampling: Mapping[str, Any], prompt_tokens: int, context: int) -> dict[str, Any]:
    """Clamp max_tokens and min_tokens to what the context leaves; raises EngineRejected when it leaves nothing."""
    room = context - prompt_tokens
    if room < 1:
        message = f"the prompt has {prompt_tokens} tokens; with one to generate, the context of {context} is too short"
        raise ContextExceeded(message, param="prompt")
    asked = sampling.get("max_tokens")
    most = room if asked is None else min(asked, room)
    fitted = {**sampling, "max_tokens": most}
    # A min_tokens beyond what was asked for is the caller's error, and is left for vLLM to refuse.
    if "min_tokens" in sampling and (asked is None or sampling["min_tokens"] <= asked):
        fitted["min_tokens"] = min(sampling["min_tokens"], most)
    return fitted


def rejected(error: Exception, param: str | None = None) -> EngineRejected:
    """Make the refusal of vLLM's error, naming the field where the error or its wording does, else `param`."""
    message = str(error) or type(error).__name__
    field = getattr(error, "parameter", None)
    if field in PROMPT_LENGTHS:
        return ContextExceeded(message, param="prompt")
    named = "n" if message.startswith("n must be") else None
    named = named or next((word for word in re.findall(r"\w+", message) if word in FIELDS and len(word) > 1), None)
    return EngineRejected(message, param=field or named or param)


def _converted(name: str, value: Any) -> Any:
    if name not in FIELDS:
        raise EngineRejected(f"unknown sampling parameter {name!r}; there are {', '.join(sorted(FIELDS))}", param=name)
    try:
        # Keys of JSON objects are strings, also those of logit_bias.
        converted = msgspec.convert(value, FIELDS[name], strict=name != "logit_bias")
    except msgspec.ValidationError as error:
        raise EngineRejected(f"sampling parameter {name!r}: {error}", param=name) from error
    numbers = converted.values() if name == "logit_bias" and converted else (converted,)
    if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
        raise EngineRejected(f"sampling parameter {name!r} must be a finite number", param=name)
    return converted


def _is_set(value: object) -> bool:
    return value is not None and value is not False  # 0 probabilities beside a token's own are asked for
