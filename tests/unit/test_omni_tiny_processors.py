"""The input that each stage of omni-tiny gets from the stage before it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import replace

import numpy as np
import pytest

from omnibus.errors import EmptyPrompt, EngineError, EngineRejected
from omnibus.omni_tiny import processors, vocabulary
from omnibus.omni_tiny.conditions import CHANNELS, LENGTH, conditions_of
from omnibus.wire.request import AudioPart, Message, Request
from omnibus.workers.engines.protocol import Outputs, StageInput
from tools.omni_tiny.grammar import all_scenes, parse
from tools.omni_tiny.tokens import TALKER_VOCABULARY, canonical_ids, code_ids
from tools.omni_tiny.voice import codes_of

pytestmark = pytest.mark.unit

PROMPT = "draw a red circle left of a blue square"


def stage_input(request: Request | None = None, **sources: Outputs) -> StageInput:
    return StageInput(rid="r1", request=request or Request(prompt=PROMPT), sources=sources)


def test_a_bare_prompt_becomes_a_user_turn_when_it_is_text() -> None:
    assert processors.thinker_input(stage_input()).messages == (Message(role="user", content=PROMPT),)


def test_a_chat_or_token_ids_stay_as_they_are_when_given() -> None:
    chat = (Message(role="user", content=PROMPT),)
    assert processors.thinker_input(stage_input(Request(messages=chat))).messages == chat
    assert processors.thinker_input(stage_input(Request(prompt=(2, 3)))).token_ids == (2, 3)


@pytest.mark.parametrize("request_", [Request(prompt="  "), Request(messages=(Message(role="user", content=""),))])
def test_an_empty_prompt_is_refused_when_nothing_is_asked(request_: Request) -> None:
    with pytest.raises(EmptyPrompt):
        processors.thinker_input(stage_input(request_))


def test_a_file_alone_is_left_to_the_engine_when_nothing_is_written() -> None:
    chat = (Message(role="user", content=(AudioPart(data=b"RIFF"),)),)
    assert processors.thinker_input(stage_input(Request(messages=chat))).messages == chat


def test_conditions_are_normalised_layers_with_positions_when_built() -> None:
    states = np.random.default_rng(0).normal(3, 5, size=(7, 2, 128))
    embeds, mask = conditions_of(states)
    assert embeds.shape == (LENGTH, CHANNELS)
    assert embeds.dtype == np.float32
    assert mask.tolist() == [1] * 7 + [0] * (LENGTH - 7)
    assert not embeds[7:].any()
    first = np.concatenate([states[0, layer] / np.sqrt(np.mean(states[0, layer] ** 2)) for layer in (0, 1)])
    np.testing.assert_allclose(embeds[0, : CHANNELS // 2], first[:128], atol=1e-5)  # sin 0 = 0
    np.testing.assert_allclose(embeds[0, CHANNELS // 2 :], first[128:] + 1, atol=1e-5)  # cos 0 = 1


def test_conditions_do_not_change_when_the_scale_of_a_layer_does() -> None:
    states = np.random.default_rng(0).normal(size=(5, 2, 128))
    np.testing.assert_allclose(conditions_of(states * 10).embeds, conditions_of(states).embeds, atol=1e-4)


def test_a_value_error_when_hidden_states_have_another_shape() -> None:
    with pytest.raises(ValueError, match="hidden states"):
        conditions_of(np.zeros((5, 3, 128)))


@pytest.mark.parametrize("tokens", [9, 40])
def test_dit_input_has_four_values_of_one_length_when_prompts_are_short_or_long(tokens: int) -> None:
    states = np.random.default_rng(0).normal(size=(tokens, 2, 128)).astype(np.float32)
    values = processors.dit_input(stage_input(thinker={"hidden_states": states})).values
    length = max(LENGTH, tokens)
    assert {name: value.shape for name, value in values.items()} == {
        "prompt_embeds": (length, CHANNELS),
        "prompt_attention_mask": (length,),
        "negative_prompt_embeds": (length, CHANNELS),
        "negative_prompt_attention_mask": (length,),
    }
    assert values["prompt_attention_mask"].sum() == tokens


def negative_of(given: StageInput) -> tuple[np.ndarray, np.ndarray]:
    values = processors.dit_input(given).values
    return values["negative_prompt_embeds"], values["negative_prompt_attention_mask"]


def asking_against(prompt: str) -> Request:
    return Request(prompt=PROMPT, sampling_params={"dit": {"negative_prompt": prompt}})


@pytest.mark.parametrize("request_", [Request(prompt=PROMPT), asking_against("  ")])
def test_the_negative_is_the_encoded_empty_prompt_when_there_is_none(request_: Request) -> None:
    embeds, mask = negative_of(stage_input(request_, thinker={"hidden_states": np.ones((9, 2, 128))}))
    assert mask.sum() == 2  # the user's turn begins, the assistant's turn begins
    assert np.abs(embeds[:2]).max() > 0.5


@pytest.mark.parametrize("tokens", [9, 40])
def test_the_negative_is_what_the_thinker_encoded_beside_the_prompt(tokens: int) -> None:
    states = np.random.default_rng(1).normal(size=(tokens, 2, 128)).astype(np.float32)
    given = replace(
        stage_input(asking_against("a cross"), thinker={"hidden_states": np.ones((9, 2, 128))}),
        companions={"thinker": {"negative": {"hidden_states": states}}},
    )
    embeds, mask = negative_of(given)
    expected = conditions_of(states)
    np.testing.assert_array_equal(embeds, expected.embeds)
    np.testing.assert_array_equal(mask, expected.mask)
    assert len(processors.dit_input(given).values["prompt_attention_mask"]) == max(LENGTH, tokens)


def test_a_negative_prompt_is_refused_when_the_thinker_did_not_encode_it() -> None:
    with pytest.raises(EngineRejected, match="prompt_expand"):
        negative_of(stage_input(asking_against("a cross"), thinker={"hidden_states": np.ones((9, 2, 128))}))


async def test_talker_speaks_the_thinkers_words_one_by_one_when_they_are_whole() -> None:
    ids = canonical_ids(parse(PROMPT).symbols)
    for given in (ids, ids[:-1], [300, *ids], [*ids, 0]):
        assert await words(stage_input(thinker={"token_ids": given})) == [[one] for one in ids]


async def test_talker_input_is_refused_when_the_thinker_named_nothing() -> None:
    with pytest.raises(EngineRejected, match="no coloured shape"):
        await words(stage_input(thinker={"token_ids": [300, vocabulary.END_ID]}))


def test_code2wav_input_is_the_codes_when_the_talker_has_spoken() -> None:
    codes = codes_of(parse(PROMPT).symbols)
    said = code_ids(codes)
    assert processors.code2wav_input(stage_input(talker={"token_ids": said})).values == {"codes": codes}


def test_code2wav_input_is_refused_when_the_talker_produced_no_code() -> None:
    with pytest.raises(EngineRejected):
        processors.code2wav_input(stage_input(talker={"token_ids": [vocabulary.END_ID]}))


class Spoken:
    """What a talker has said, chunk by chunk."""

    def __init__(self, *chunks: Outputs) -> None:
        self._chunks = chunks

    async def __aiter__(self) -> AsyncIterator[Outputs]:
        for chunk in self._chunks:
            yield chunk

    def __iter__(self) -> Iterator[Outputs]:
        return iter(self._chunks)


async def codes_from(*chunks: Outputs) -> list[int]:
    given = StageInput(rid="r1", request=Request(prompt=PROMPT), flows={"talker": Spoken(*chunks)})
    made = processors.code2wav_input(given)
    assert isinstance(made, AsyncGenerator)
    return [code async for part in made for code in part.values["codes"]]


async def test_code2wav_gets_the_same_codes_while_the_talker_still_speaks() -> None:
    codes = codes_of(parse(PROMPT).symbols)
    said = code_ids(codes)
    chunks = [{"token_ids": said[start : start + 7]} for start in range(0, len(said), 7)]
    assert await codes_from(*chunks, {"text": "beside"}) == codes


async def words(given: StageInput) -> list[list[int]]:
    return [list(part.token_ids or ()) async for part in processors.talker_input(given)]


async def words_from(*chunks: Outputs) -> list[list[int]]:
    return await words(StageInput(rid="r1", request=Request(prompt=PROMPT), flows={"thinker": Spoken(*chunks)}))


async def test_talker_gets_the_same_words_while_the_thinker_still_writes() -> None:
    ids = [*range(vocabulary.CANONICAL_BASE, vocabulary.CANONICAL_BASE + 6), vocabulary.END_ID]
    for size in (1, 3, 7):
        chunks = [{"token_ids": ids[start : start + size]} for start in range(0, 7, size)]
        assert await words_from(*chunks) == [[one] for one in ids]
    assert await words_from({"token_ids": ids[:-1]}) == [[one] for one in ids], (
        "a thinker that did not close its answer"
    )


async def test_talker_does_not_wait_for_what_follows_the_thinkers_answer() -> None:
    class Unending(Spoken):
        async def __aiter__(self) -> AsyncIterator[Outputs]:
            async for chunk in super().__aiter__():
                yield chunk
            raise AssertionError("the answer has ended")

    given = Unending({"token_ids": [vocabulary.CANONICAL_BASE, vocabulary.END_ID]})
    asked = StageInput(rid="r1", request=Request(prompt=PROMPT), flows={"thinker": given})
    assert await words(asked) == [[vocabulary.CANONICAL_BASE], [vocabulary.END_ID]]


async def test_talker_input_is_refused_when_the_thinkers_flow_names_nothing() -> None:
    with pytest.raises(EngineRejected):
        await words_from({"token_ids": [vocabulary.END_ID]})


async def test_code2wav_input_is_refused_when_the_talker_ends_without_a_code() -> None:
    with pytest.raises(EngineRejected):
        await codes_from({"token_ids": [vocabulary.END_ID]})


def test_an_engine_error_when_a_source_is_missing() -> None:
    with pytest.raises(EngineError, match="hidden_states"):
        processors.dit_input(stage_input(thinker={"text": "red circle"}))


def test_every_id_fits_the_talker_when_words_and_codes_share_a_vocabulary() -> None:
    ids = {token for scene in all_scenes() for token in canonical_ids(scene.symbols)}
    codes = set(code_ids(range(49)))
    assert ids.isdisjoint(codes)
    assert max(ids | codes) < TALKER_VOCABULARY
