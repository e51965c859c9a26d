"""The timestamps that Whisper writes between its words, by transformers' own decoding. Imports torch and transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from omnibus.errors import EngineRejected
from omnibus.wire.timed_text import TimedSegment, TimedText, TimedWord

GRANULARITIES = "timestamp_granularities"
_ALONE = "english"
"""The language of a checkpoint that knows only one."""


def generation_arguments(granularities: frozenset[str], config: Any) -> dict[str, Any]:
    """Arguments of `generate` for these timestamps; raises EngineRejected for those that the checkpoint cannot make."""
    if not granularities:
        return {}
    lacking = {"segment": "no_timestamps_token_id", **({"word": "alignment_heads"} if "word" in granularities else {})}
    for granularity, name in lacking.items():
        if getattr(config, name, None) is None:
            what = f"the checkpoint has no timestamps by {granularity}: its generation config names no {name}"
            raise EngineRejected(what, param=GRANULARITIES)
    return {"return_timestamps": True, "return_segments": True, "return_token_timestamps": "word" in granularities}


def transcript_of(made: Mapping[str, Any], tokenizer: Any, config: Any, seconds: float, precision: float) -> TimedText:
    """The parts of what `generate` made of one sound; `precision` is the seconds of one step of a timestamp."""
    (parts,) = made["segments"]
    segments = [
        TimedSegment(
            start=_within(part["start"], seconds), end=_within(part["end"], seconds),
            text=tokenizer.decode(part["tokens"], skip_special_tokens=True), tokens=tuple(part["tokens"].tolist()),
        )
        for part in parts
    ]  # fmt: skip
    return TimedText(
        language=_language(parts, config), duration=seconds, segments=tuple(segments),
        words=_words(made["sequences"], parts, tokenizer, seconds, precision) if "token_timestamps" in made else (),
    )  # fmt: skip


def _words(
    sequences: torch.Tensor, parts: list[Any], tokenizer: Any, seconds: float, precision: float
) -> tuple[TimedWord, ...]:
    times = torch.cat([part["token_timestamps"] for part in parts]) if parts else torch.zeros(0)
    # No public method groups tokens into words; transformers' own pipeline calls this one.
    _, found = tokenizer._decode_asr(  # noqa: SLF001
        [{"tokens": sequences[:, : len(times)], "token_timestamps": times[None]}],
        return_timestamps="word", return_language=False, time_precision=precision,
    )  # fmt: skip
    timed = [(one["text"].strip(), *one["timestamp"]) for one in found["chunks"]]
    return tuple(
        TimedWord(word=word, start=_within(start, seconds), end=_within(end if end is not None else seconds, seconds))
        for word, start, end in timed
        if word
    )


def _language(parts: list[Any], config: Any) -> str:
    """The language that was asked for, or found: its token stands before the text of the first part."""
    known = {number: token.strip("<|>") for token, number in (getattr(config, "lang_to_id", None) or {}).items()}
    if not parts or not known:
        return _ALONE
    result = parts[0]["result"]
    tokens = (result["sequences"] if isinstance(result, Mapping) else result).tolist()
    code = next((known[token] for token in tokens if token in known), "en")
    return str(LANGUAGES.get(code, code))


def _within(at: Any, seconds: float) -> float:
    return round(min(max(float(at), 0.0), seconds), 2)
