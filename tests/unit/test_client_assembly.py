"""From what arrives on core NATS to the contiguous stream that a client sees."""

from __future__ import annotations

import dataclasses
import time

import msgspec
import numpy as np
import pytest

from omnibus.client.assembly import Assembly
from omnibus.client.media_chunk import MediaChunk
from omnibus.client.request_events import FieldPiece, Output, OutputArrived, StepProgress, TextPiece
from omnibus.payloads.packing import HEAVY
from omnibus.wire.out import Fence, FieldDelta, Step, Tokens
from omnibus.wire.payload import PNG, TEXT

pytestmark = pytest.mark.unit
FIRST, SECOND = Fence(1, 5, 1), Fence(1, 5, 2)


def piece(offset: int, text: str, fence: Fence = FIRST) -> Tokens:
    return Tokens(rid="r", stage_id=0, fence=fence, offset=offset, text=text)


def received(assembly: Assembly, *messages: Tokens) -> str:
    return "".join(found.text for message in messages for found in assembly.tokens(message))


def text_output(text: str) -> Output:
    return Output(stage_id=0, modality="text", media_type=TEXT, items=(text.encode(),))


def test_pieces_pass_as_they_come() -> None:
    assert received(Assembly(), piece(0, "ab"), piece(2, "cd")) == "abcd"


def test_repeated_and_overlapping_pieces_are_trimmed() -> None:
    assert received(Assembly(), piece(0, "ab"), piece(0, "ab"), piece(1, "bcd")) == "abcd"


def test_a_text_of_very_many_pieces_is_put_together_in_seconds() -> None:
    """Copying the text for each piece would take minutes."""
    assembly, began, count = Assembly(), time.process_time(), 400_000
    for number in range(count):
        assert received(assembly, piece(5 * number, "token")) == "token"
    assert list(assembly.output(text_output("token" * count))) == [OutputArrived(text_output("token" * count))]
    assert time.process_time() - began < 20.0


def test_piece_after_a_gap_waits_for_the_output_that_fills_it() -> None:
    assembly = Assembly()
    assert received(assembly, piece(0, "ab"), piece(4, "ef")) == "ab"
    events = list(assembly.output(text_output("abcdef")))
    assert events == [TextPiece(0, "cdef"), OutputArrived(text_output("abcdef"))]


def test_second_attempt_continues_after_the_text_that_arrived_of_the_first() -> None:
    assert received(Assembly(), piece(0, "abc"), piece(0, "ab", SECOND), piece(2, "cd", SECOND)) == "abcd"


def test_first_attempt_is_dropped_when_the_second_sends() -> None:
    assert received(Assembly(), piece(0, "ab"), piece(0, "abc", SECOND), piece(2, "XX", FIRST)) == "abc"


def test_second_attempt_that_says_something_else_is_not_spliced_on() -> None:
    assembly = Assembly()
    assert received(assembly, piece(0, "abc"), piece(0, "aX", SECOND), piece(2, "YZ", SECOND)) == "abc"
    assert list(assembly.output(text_output("aXYZ"))) == [OutputArrived(text_output("aXYZ"))]


def spoken(offset: int, *words: str, first: int = 0, fence: Fence = FIRST) -> Tokens:
    """Words, each a token whose id is its length."""
    text, ids = "".join(words), tuple(len(word) for word in words)
    return Tokens(rid="r", stage_id=0, fence=fence, offset=offset, text=text, token_offset=first, token_ids=ids)


def test_tokens_of_what_was_emitted_are_known_once_each_when_pieces_overlap() -> None:
    assembly = Assembly()
    assert received(assembly, spoken(0, "a", "bb"), spoken(1, "bb", "ccc", first=1)) == "abbccc"
    assert assembly.received(0, SECOND) == (1, 2, 3)


def test_attempt_that_asked_is_continued_and_what_was_not_yet_read_of_the_one_before_is_dropped() -> None:
    assembly = Assembly()
    assert received(assembly, spoken(0, "a", "bb")) == "abb"
    assert assembly.received(0, SECOND) == (1, 2)
    assert received(assembly, spoken(3, "ccc", first=2)) == ""
    assert received(assembly, spoken(0, "a", "bb", "dd", fence=SECOND)) == "dd"


def test_attempt_that_is_outdated_gets_no_tokens() -> None:
    assembly = Assembly()
    assert received(assembly, spoken(0, "a", fence=SECOND)) == "a"
    assert assembly.received(0, FIRST) is None
    assert received(assembly, spoken(1, "bb", first=1, fence=SECOND)) == "bb"


def test_nothing_is_continued_when_attempts_sent_different_texts() -> None:
    assembly = Assembly()
    assert received(assembly, spoken(0, "a", "bb"), spoken(0, "X", fence=SECOND)) == "abb"
    assert assembly.received(0, Fence(1, 5, 3)) == ()


def test_nothing_is_continued_when_the_output_is_known() -> None:
    assembly = Assembly()
    assert received(assembly, spoken(0, "a")) == "a"
    assert len(list(assembly.output(text_output("a")))) == 1
    assert assembly.received(0, SECOND) == ()


def test_gap_is_noticed_until_it_is_filled() -> None:
    assembly = Assembly()
    assert received(assembly, spoken(0, "a"), spoken(3, "ccc", first=2)) == "a"
    assert assembly.lacks(spoken(3, "ccc", first=2))
    assert assembly.known(0) == 1
    assert received(assembly, spoken(0, "a", "bb", "ccc")) == "bbccc"
    assert not assembly.lacks(spoken(3, "ccc", first=2))


def test_gap_of_an_outdated_attempt_is_not_asked_for() -> None:
    assembly = Assembly()
    assert received(assembly, spoken(0, "a", fence=SECOND)) == "a"
    assert not assembly.lacks(spoken(3, "ccc", first=2))


def test_aborted_text_has_all_that_was_sent_when_more_was_received_than_was_kept() -> None:
    assembly = Assembly()
    assert received(assembly, piece(0, "abcd")) == "abcd"
    kept = Output(stage_id=0, modality="text", media_type=TEXT, items=(b"ab",), finish_reason="abort")
    (event,) = assembly.output(kept)
    assert isinstance(event, OutputArrived)
    assert event.output.text == "abcd"


def test_output_arrives_once_and_silences_its_stage() -> None:
    assembly = Assembly()
    assert len(list(assembly.output(text_output("ab")))) == 2
    assert list(assembly.output(text_output("ab"))) == []
    assert received(assembly, piece(2, "late", SECOND)) == ""


def test_progress_never_runs_backwards() -> None:
    assembly, steps = Assembly(), [(1, FIRST), (3, FIRST), (1, SECOND), (4, SECOND), (2, FIRST)]
    seen = [
        event
        for step, fence in steps
        for event in assembly.step(Step(rid="r", stage_id=1, fence=fence, step=step, total=5))
    ]
    assert seen == [StepProgress(1, step, 5) for step in (1, 3, 4)]


def test_previews_of_an_attempt_that_begins_again_are_not_shown_before_it_is_further() -> None:
    assembly = Assembly()
    told = [(2, FIRST, b"two"), (1, SECOND, b"one again"), (3, FIRST, b"three"), (3, SECOND, b"three again")]
    seen = [
        event
        for step, fence, preview in told
        for event in assembly.step(Step(rid="r", stage_id=1, fence=fence, step=step, total=5, preview=preview))
    ]
    assert seen == [StepProgress(1, 2, 5, b"two"), StepProgress(1, 3, 5, b"three again")]


def test_files_are_delivered_as_they_are() -> None:
    image = Output(stage_id=1, modality="image", media_type=PNG, items=(b"a", b"b"))
    assert list(Assembly().output(image)) == [OutputArrived(image)]


# Sound

RATE = 8000
SOUND = np.arange(100, dtype=np.float32)


def sound(start: int, end: int, *, rate: int = RATE, last: bool = False) -> MediaChunk:
    return MediaChunk(2, start, SOUND[start:end], rate, is_last=last)


def heard(assembly: Assembly, *chunks: MediaChunk) -> list[float]:
    """The samples that a follower is given of these chunks."""
    pieces = [piece.values["audio"] for chunk in chunks for piece in assembly.media(chunk)]
    return [sample for piece in pieces for sample in piece.tolist()]


def test_sound_is_emitted_once_when_an_attempt_begins_again() -> None:
    assembly = Assembly()
    chunks = [sound(0, 40), sound(40, 60), sound(0, 30), sound(30, 80), sound(80, 100)]
    assert heard(assembly, *chunks) == SOUND.tolist()


def test_small_chunks_that_follow_each_other_are_one() -> None:
    both = sound(0, 40).joined(sound(40, 60))
    assert both is not None
    assert (both.offset, both.end) == (0, 60)
    assert heard(Assembly(), both, sound(60, 100)) == SOUND.tolist()
    film = [MediaChunk(2, at, np.full((2, 4, 4, 3), at, np.uint8), 8.0, modality="video") for at in (0, 2)]
    joined = film[0].joined(film[1])
    assert joined is not None
    assert joined.frames[:, 0, 0, 0].tolist() == [0, 0, 2, 2]


@pytest.mark.parametrize(
    "following",
    [
        MediaChunk(2, 100, SOUND, 2 * RATE),
        MediaChunk(2, 100, np.stack((SOUND, SOUND)), RATE),
        MediaChunk(2, 100, np.zeros(HEAVY, np.float32), RATE),
        MediaChunk(2, 100, np.zeros((100, 4, 4, 3), np.uint8), RATE, modality="video"),
    ],
    ids=["rate", "channels", "heavy", "video"],
)
def test_chunks_stay_apart_that_do_not_go_on_as_one_or_would_be_heavy(following: MediaChunk) -> None:
    assert sound(0, 100).joined(following) is None


def test_channels_stay_together_when_a_part_of_a_chunk_was_emitted() -> None:
    both = np.stack((SOUND, -SOUND))
    assembly = Assembly()
    list(assembly.media(MediaChunk(2, 0, both[:, :50], RATE)))
    (piece,) = assembly.media(MediaChunk(2, 40, both[:, 40:], RATE))
    np.testing.assert_array_equal(piece.values["audio"], both[:, 50:])


def test_nothing_of_a_sound_is_emitted_behind_its_output_or_at_another_rate() -> None:
    assembly = Assembly()
    assert heard(assembly, sound(0, 10), sound(10, 20, rate=9000)) == SOUND[:10].tolist()
    list(assembly.output(Output(2, "audio", "audio/wav", (b"wav",))))
    assert heard(assembly, sound(10, 20)) == []


def test_a_sound_is_lacking_from_its_first_chunk_to_its_last_one() -> None:
    assembly = Assembly()
    lacks = [assembly.frames_of(2)]
    for chunk in (sound(0, 50), sound(50, 100), sound(100, 100, last=True)):
        heard(assembly, chunk)
        lacks.append(assembly.frames_of(2))
    assert lacks == [None, (50, RATE), (100, RATE), None]


def test_a_sound_is_lacking_when_its_last_chunk_is_of_another_sound() -> None:
    assembly = Assembly()
    heard(assembly, sound(0, 50), sound(100, 100, last=True, rate=2 * RATE))
    assert assembly.frames_of(2) == (50, RATE)
    list(assembly.output(Output(2, "audio", "audio/wav", (b"wav",))))
    assert assembly.frames_of(2) is None, "the output comes again"


def fields(*pieces: tuple[str, int, str], before: int = 0, text: Tokens | None = None, fence: Fence = FIRST) -> Tokens:
    """A message with pieces of fields, `before` characters of which came earlier."""
    at = text or piece(0, "", fence)
    deltas = tuple(FieldDelta(name, offset, at.offset, new) for name, offset, new in pieces)
    return msgspec.structs.replace(at, fields=deltas, fields_offset=before)


def test_fields_are_emitted_in_their_places_in_the_text() -> None:
    assembly = Assembly()
    message = msgspec.structs.replace(
        piece(0, "abcd"), fields=(FieldDelta("reasoning", 0, 0, "x"), FieldDelta("1.text", 0, 2, "y"))
    )
    assert list(assembly.tokens(message)) == [
        FieldPiece(0, "reasoning", "x"), TextPiece(0, "ab"), FieldPiece(0, "1.text", "y"), TextPiece(0, "cd"),
    ]  # fmt: skip


def test_a_later_attempt_continues_fields_however_it_cuts_them() -> None:
    assembly = Assembly()
    first = [
        *assembly.tokens(fields(("reasoning", 0, "ab"))),
        *assembly.tokens(fields(("reasoning", 2, "c"), before=2)),
    ]
    second = list(assembly.tokens(fields(("reasoning", 0, "abcde"), fence=SECOND)))
    assert [event.text for event in (*first, *second)] == ["ab", "c", "de"]


def test_a_piece_of_a_field_behind_a_gap_waits_when_attempts_make_fields_in_another_order() -> None:
    assembly = Assembly()
    assert len(list(assembly.tokens(fields(("2.text", 0, "abcdefgh"))))) == 1
    late = fields(("1.text", 3, "de"), ("1.text", 5, "f"), before=3, fence=SECOND)
    assert assembly.lacks(late)
    assert list(assembly.tokens(late)) == []
    whole = fields(("1.text", 0, "abc"), ("1.text", 3, "de"), fence=SECOND)
    assert [event.text for event in assembly.tokens(whole)] == ["abc", "de"]


def test_a_message_behind_a_field_that_was_not_received_waits() -> None:
    assembly = Assembly()
    late = fields(before=3, text=piece(0, "text"))
    assert assembly.lacks(late)
    assert list(assembly.tokens(late)) == []
    assert list(assembly.tokens(fields(("reasoning", 0, "abc")))) == [FieldPiece(0, "reasoning", "abc")]
    assert list(assembly.tokens(late)) == [TextPiece(0, "text")]


def test_nothing_more_is_emitted_when_a_later_attempt_contradicts_a_field() -> None:
    assembly = Assembly()
    list(assembly.tokens(fields(("reasoning", 0, "ab"))))
    assert list(assembly.tokens(fields(("reasoning", 0, "xyz"), text=piece(0, "text", SECOND)))) == []
    whole = dataclasses.replace(text_output("text"), fields={"reasoning": "xyz"})
    assert list(assembly.output(whole)) == [TextPiece(0, "text"), OutputArrived(whole)]


def test_the_output_brings_what_was_not_received_of_fields() -> None:
    assembly = Assembly()
    list(assembly.tokens(fields(("reasoning", 0, "ab"))))
    whole = dataclasses.replace(text_output("text"), fields={"reasoning": "abc", "logprobs": "{}\n"})
    assert list(assembly.output(whole)) == [
        FieldPiece(0, "reasoning", "c"), FieldPiece(0, "logprobs", "{}\n"), TextPiece(0, "text"), OutputArrived(whole),
    ]  # fmt: skip


def test_a_later_attempt_goes_on_after_tokens_that_made_fields_alone() -> None:
    assembly = Assembly()
    list(assembly.tokens(msgspec.structs.replace(fields(("reasoning", 0, "ab")), token_ids=(1, 2))))
    list(assembly.tokens(msgspec.structs.replace(fields(before=2, text=piece(0, "t")), token_ids=(3,), token_offset=2)))
    assert assembly.received(0, SECOND) == (1, 2, 3)


def test_a_field_of_very_many_pieces_is_put_together_in_seconds() -> None:
    assembly, began, count = Assembly(), time.process_time(), 100_000
    for number in range(count):
        list(assembly.tokens(fields(("reasoning", 5 * number, "token"), before=5 * number)))
    assert time.process_time() - began < 20.0
