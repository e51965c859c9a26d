"""Input processors of the omni-tiny pipeline: each makes a stage's input of the outputs before it. numpy only.

thinker ──hidden_states──► dit_input ──► dit     its companion's too, which is the negative prompt
   └──token_ids──► talker_input ──► talker ──token_ids──► code2wav_input ──► code2wav
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import cache
from importlib.resources import files
from io import BytesIO
from typing import Any

import numpy as np

from omnibus.errors import EmptyPrompt, EngineError, EngineRejected
from omnibus.omni_tiny import vocabulary
from omnibus.omni_tiny.conditions import LENGTH, conditions_of
from omnibus.wire.request import Message, Request, TextPart
from omnibus.workers.engines.protocol import EngineInput, StageInput

EMPTY_PROMPT_FILE = "empty_prompt.npy"


def thinker_input(stage_input: StageInput) -> EngineInput:
    """Make a chat for the thinker: a bare prompt becomes a user's turn, since the model only knows its chat template.

    Raises EmptyPrompt for an empty prompt. A file alone goes to the engine, which refuses it by its kind.
    """
    request = stage_input.request
    if not request.text().strip() and not isinstance(request.prompt, tuple) and not _has_file(request):
        raise EmptyPrompt(param="prompt")
    if request.messages is not None:
        return EngineInput(messages=request.messages)
    if isinstance(request.prompt, tuple):
        return EngineInput(token_ids=request.prompt)
    return EngineInput(messages=(Message(role="user", content=request.text()),))


def _has_file(request: Request) -> bool:
    contents = [message.content for message in request.messages or () if not isinstance(message.content, str)]
    return any(not isinstance(part, TextPart) for content in contents for part in content)


def dit_input(stage_input: StageInput) -> EngineInput:
    """Make the dit's conditions of the thinker's hidden states; the negative ones of its companion's, or of the empty prompt's.

    Values, all of one length L ≥ 32: `prompt_embeds`, `negative_prompt_embeds` (L, 256) float32, and
    `prompt_attention_mask`, `negative_prompt_attention_mask` (L,) int64. Raises EngineRejected for a negative prompt that the
    thinker did not encode.
    """
    states = np.asarray(_output(stage_input, "thinker", "hidden_states"))
    against = _negative_states(stage_input)
    length = max(LENGTH, len(states), len(against))
    asked, negative = conditions_of(states, length), conditions_of(against, length)
    return EngineInput(
        values={
            "prompt_embeds": asked.embeds,
            "prompt_attention_mask": asked.mask,
            "negative_prompt_embeds": negative.embeds,
            "negative_prompt_attention_mask": negative.mask,
        }
    )


async def talker_input(stage_input: StageInput) -> AsyncGenerator[EngineInput, None]:
    """The thinker's canonical words one by one as they are written, and END: the talker speaks each before it reads the next.

    What else the thinker leaves is not waited for. Raises EngineRejected when there are no words.
    """
    has_words = False
    async with aclosing(_tokens_of(stage_input, "thinker")) as pieces:
        async for token_ids in pieces:
            *words, _end = vocabulary.only_canonical(token_ids)
            for word in words:
                has_words = True
                yield EngineInput(token_ids=[word])
            if vocabulary.END_ID in token_ids:
                break
    if not has_words:
        raise EngineRejected("the thinker found no coloured shape in the prompt", param="prompt")
    yield EngineInput(token_ids=[vocabulary.END_ID])


async def _tokens_of(stage_input: StageInput, source: str) -> AsyncGenerator[Sequence[int], None]:
    """The tokens that a source made, as they are made or all at once."""
    if (flow := stage_input.flows.get(source)) is None:
        yield _output(stage_input, source, "token_ids")
        return
    async for chunk in flow:
        yield chunk.get("token_ids", ())


def code2wav_input(stage_input: StageInput) -> EngineInput | AsyncGenerator[EngineInput, None]:
    """The talker's codec codes: `codes`, a list of ints below 49, whole or as they are made.

    Raises EngineRejected when there are none.
    """
    if "talker" in stage_input.flows:
        return _codes_of(stage_input)
    codes = vocabulary.codes_of_ids(_output(stage_input, "talker", "token_ids"))
    if not codes:
        raise _silence()
    return EngineInput(values={"codes": codes})


async def _codes_of(stage_input: StageInput) -> AsyncGenerator[EngineInput, None]:
    has_spoken = False
    async with aclosing(_tokens_of(stage_input, "talker")) as pieces:
        async for token_ids in pieces:
            if codes := vocabulary.codes_of_ids(token_ids):
                has_spoken = True
                yield EngineInput(values={"codes": codes})
    if not has_spoken:
        raise _silence()


def _silence() -> EngineRejected:
    return EngineRejected("the talker produced no code", param="prompt")


def _negative_states(stage_input: StageInput) -> np.ndarray:
    encoded = stage_input.companions.get("thinker", {}).get("negative")
    if encoded is not None:
        return np.asarray(encoded["hidden_states"])
    if stage_input.request.negative_prompt(stage_input.stages) is not None:
        raise EngineRejected("the thinker has no prompt_expand that encodes it", param="negative_prompt")
    return _empty_states()


@cache
def _empty_states() -> np.ndarray:
    source = files("omnibus.omni_tiny") / "checkpoints" / "dit" / EMPTY_PROMPT_FILE
    return np.asarray(np.load(BytesIO(source.read_bytes()), allow_pickle=False))


def _output(stage_input: StageInput, stage: str, name: str) -> Any:
    try:
        return stage_input.sources[stage][name]
    except KeyError as error:
        raise EngineError(f"stage {stage!r} left no output {name!r}") from error
