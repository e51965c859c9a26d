"""Fields of a body that this server does not read: passed where they ask for nothing, else refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pydantic_core import InitErrorDetails, PydanticCustomError, ValidationError

from omnibus.wire.request import asks_nothing

SENT_FOR_NO_REASON = frozenset(
    {
        *("metadata", "store", "service_tier", "parallel_tool_calls", "stream_options", "moderation"),  # OpenAI's own
        *("safety_identifier", "prompt_cache_key", "prompt_cache_retention"),  # no answer depends on them
        "cache_control",
        "voice",  # clients must name one; a pipeline has the voice that it has
        "detail",  # of a picture, which is seen at its own size
        *("index", "annotations"),  # of earlier answers that are sent back
    }
)
"""Fields that clients send whatever they want; they are let through with any value."""
DEFAULTS: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        **dict.fromkeys(("n", "best_of"), (1,)),
        **dict.fromkeys(("speed", "length_penalty"), (1.0,)),
        **dict.fromkeys(("top_logprobs", "strength", "max_tokens_per_doc", "max_tokens_per_query"), (0,)),
        **dict.fromkeys(("skip_special_tokens", "spaces_between_special_tokens", "detokenize"), (True,)),
        **dict.fromkeys(("add_generation_prompt", "include_reasoning"), (True,)),
        "response_format": ({"type": "text"},),
        "tool_choice": ("none", "auto"),
        "function_call": ("none", "auto"),
        "verbosity": ("medium",),
        "background": ("auto", "opaque"),
        "quality": ("auto", "standard"),
        "style": ("vivid",),
        "output_compression": (100,),
        "input_fidelity": ("low",),
    }
)
"""Values by which other servers' fields ask for what happens anyway."""
HINTS: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("width", "height"), "use size, WIDTHxHEIGHT"),
        **dict.fromkeys(
            ("image", "mask", "strength"), "images are made of a prompt alone here: /v1/images/edits takes files"
        ),
        "modalities": "this route delivers one modality",
    }
)


def check_unread(fields: Mapping[str, Any] | None, title: str, instead: str) -> None:
    """Raises pydantic's ValidationError naming each field that asks for something; `instead` says what to do."""
    asking = [name for name, value in (fields or {}).items() if not _asks_nothing(name, value)]
    if asking:
        raise ValidationError.from_exception_data(title, [_refusal(name, instead) for name in asking])


def _asks_nothing(name: str, value: object) -> bool:
    defaults = DEFAULTS.get(name, ())
    if name in SENT_FOR_NO_REASON or (asks_nothing(value) and not (value is False and True in defaults)):
        return True
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in defaults)


def _refusal(name: str, instead: str) -> InitErrorDetails:
    hint = HINTS.get(name, instead)
    if name in DEFAULTS:
        hint = f"only {' or '.join(repr(value) for value in DEFAULTS[name])} is; {hint}"
    problem = PydanticCustomError("unsupported", "not supported: {hint}", {"hint": hint})
    return InitErrorDetails(type=problem, loc=(name,), input=None)
