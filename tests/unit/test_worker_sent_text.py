"""The text that a running job has sent, and can send again from any offset."""

from __future__ import annotations

import pytest

from omnibus.client.assembly import Assembly
from omnibus.wire.control import SENT_TEXT_PAGE
from omnibus.wire.out import Fence
from omnibus.workers.engines.protocol import TextDelta
from omnibus.workers.text_stream import MOST_KEPT, SentText, SentTexts

pytestmark = pytest.mark.unit
FIRST, SECOND = Fence(1, 5, 1), Fence(1, 5, 2)


def said_of(*pieces: tuple[str, tuple[int, ...]]) -> SentText:
    sent_text = SentText("r", 0, FIRST)
    for text, token_ids in pieces:
        sent_text.add(TextDelta(text=text, token_ids=token_ids))
    return sent_text


def heard_again(sent_text: SentText, assembly: Assembly) -> str:
    messages = list(sent_text.since(assembly.known(0)))
    return "".join(piece.text for message in messages for piece in assembly.tokens(message))


def test_all_text_is_sent_again_from_the_start() -> None:
    sent_text, assembly = said_of(("a", (1,)), ("", (2,)), ("é", (3,)), ("b", (4,))), Assembly()
    assert heard_again(sent_text, assembly) == "aéb"
    assert assembly.received(0, SECOND) == (1, 2, 3, 4)


def test_tokens_are_without_a_gap_when_the_text_stood_between_the_tokens_of_a_character() -> None:
    assembly = Assembly()
    assert heard_again(said_of(("a", (1,))), assembly) == "a"
    assert heard_again(said_of(("a", (1,)), ("", (2,)), ("é", (3,))), assembly) == "é"
    assert assembly.received(0, SECOND) == (1, 2, 3)


def test_rest_is_sent_when_a_piece_was_received_in_part() -> None:
    (message,) = said_of(("abc", (1,)), ("de", (2,))).since(2)
    assert (message.offset, message.text, message.token_offset, message.token_ids) == (0, "abcde", 0, (1, 2))


def test_answer_is_empty_when_no_text_was_sent() -> None:
    (message,) = said_of().since(0)
    assert (message.offset, message.text) == (0, "")


def test_long_text_is_sent_in_pages_of_which_the_last_is_short() -> None:
    word = "x" * 1000
    sent_text = said_of(*((word, (number,)) for number in range(200)))
    pages = list(sent_text.since(0))
    assert [len(page.text) >= SENT_TEXT_PAGE for page in pages] == [True] * (len(pages) - 1) + [False]
    assert "".join(page.text for page in pages) == word * 200
    assert [token for page in pages for token in page.token_ids] == list(range(200))


def test_rest_of_a_text_is_not_kept_when_it_is_too_long() -> None:
    sent_text = said_of(("x" * (MOST_KEPT - 1), (1,)), ("yy", (2,)), ("z", (3,)))
    assert "".join(page.text for page in sent_text.since(0)) == "x" * (MOST_KEPT - 1)


def test_text_is_forgotten_when_its_job_ends_and_a_later_attempt_has_its_place() -> None:
    sent_texts = SentTexts()
    with sent_texts.kept("r", 0, FIRST), sent_texts.kept("r", 0, SECOND) as later:
        assert sent_texts.of("r", 0) is later
    assert sent_texts.of("r", 0) is None
