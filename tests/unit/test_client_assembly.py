"""From what arrives on core NATS to the contiguous stream that a client sees."""

from __future__ import annotations

import pytest

from omnibus.client.assembly import Assembly
from omnibus.client.events import Output, OutputArrived, StepProgress, TextPiece
from omnibus.wire.out import Fence, Step, Tokens
from omnibus.wire.payload import PNG, TEXT

pytestmark = pytest.mark.unit
FIRST, SECOND = Fence(1, 5, 1), Fence(1, 5, 2)


def piece(offset: int, text: str, fence: Fence = FIRST) -> Tokens:
    return Tokens(rid="r", stage_id=0, fence=fence, offset=offset, text=text)


def heard(assembly: Assembly, *messages: Tokens) -> str:
    return "".join(found.text for message in messages for found in assembly.tokens(message))


def text_output(text: str) -> Output:
    return Output(stage_id=0, modality="text", media_type=TEXT, items=(text.encode(),))


def test_pieces_pass_as_they_come() -> None:
    assert heard(Assembly(), piece(0, "ab"), piece(2, "cd")) == "abcd"


def test_repeated_and_overlapping_pieces_are_trimmed() -> None:
    assert heard(Assembly(), piece(0, "ab"), piece(0, "ab"), piece(1, "bcd")) == "abcd"


def test_piece_after_a_gap_waits_for_the_output_that_fills_it() -> None:
    assembly = Assembly()
    assert heard(assembly, piece(0, "ab"), piece(4, "ef")) == "ab"
    events = list(assembly.output(text_output("abcdef")))
    assert events == [TextPiece(0, "cdef"), OutputArrived(text_output("abcdef"))]


def test_second_attempt_continues_where_the_first_was_heard_last() -> None:
    assert heard(Assembly(), piece(0, "abc"), piece(0, "ab", SECOND), piece(2, "cd", SECOND)) == "abcd"


def test_first_attempt_is_not_heard_any_more_when_the_second_speaks() -> None:
    assert heard(Assembly(), piece(0, "ab"), piece(0, "abc", SECOND), piece(2, "XX", FIRST)) == "abc"


def test_second_attempt_that_says_something_else_is_not_spliced_on() -> None:
    assembly = Assembly()
    assert heard(assembly, piece(0, "abc"), piece(0, "aX", SECOND), piece(2, "YZ", SECOND)) == "abc"
    assert list(assembly.output(text_output("aXYZ"))) == [OutputArrived(text_output("aXYZ"))]


def test_output_arrives_once_and_silences_its_stage() -> None:
    assembly = Assembly()
    assert len(list(assembly.output(text_output("ab")))) == 2
    assert list(assembly.output(text_output("ab"))) == []
    assert heard(assembly, piece(2, "late", SECOND)) == ""


def test_progress_never_runs_backwards() -> None:
    assembly, steps = Assembly(), [(1, FIRST), (3, FIRST), (1, SECOND), (4, SECOND), (2, FIRST)]
    seen = [
        event
        for step, fence in steps
        for event in assembly.step(Step(rid="r", stage_id=1, fence=fence, step=step, total=5))
    ]
    assert seen == [StepProgress(1, step, 5) for step in (1, 3, 4)]


def test_files_are_delivered_as_they_are() -> None:
    image = Output(stage_id=1, modality="image", media_type=PNG, items=(b"a", b"b"))
    assert list(Assembly().output(image)) == [OutputArrived(image)]
