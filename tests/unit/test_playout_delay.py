"""Whether a sound waits for its second piece."""

from __future__ import annotations

from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from omnibus.workers.playout_delay import LONGEST, MOST, REMEMBERED, Media, MediaPace, PlayoutDelay

PIECE = SimpleNamespace(seconds=0.16)


def held(pace: MediaPace, *beside: PlayoutDelay, piece: Media = PIECE) -> float:
    """Seconds for which the first piece of a sound may be held, while others are made beside it."""
    with ExitStack() as stack:
        for one in beside:
            stack.enter_context(one)
        return stack.enter_context(PlayoutDelay(pace, piece)).of_piece(0.0)


def made(pace: MediaPace, *intervals: float) -> None:
    """Note a sound with so many seconds between its pieces."""
    with PlayoutDelay(pace, PIECE) as delay:
        for number in range(len(intervals) + 1):
            delay.of_piece(sum(intervals[:number]))


def test_a_sound_alone_begins_with_its_first_piece() -> None:
    pace = MediaPace()
    assert held(pace) == 0.0
    made(pace, 0.02, 0.02, 9.0)
    assert held(pace) == 0.0, "one that was slow once changes nothing"


def test_a_sound_among_others_begins_with_its_second_piece() -> None:
    pace = MediaPace()
    assert held(pace, PlayoutDelay(pace, PIECE)) == pytest.approx(MOST * 0.16)
    assert held(pace) == 0.0


def test_a_sound_begins_with_its_second_piece_where_they_come_hardly_faster_than_they_play() -> None:
    pace = MediaPace()
    made(pace, 0.12, 0.12, 0.12)
    assert held(pace) == pytest.approx(MOST * 0.16)
    made(pace, *[0.02] * REMEMBERED)
    assert held(pace) == 0.0


def test_a_long_piece_is_not_held_for_long() -> None:
    pace = MediaPace()
    assert held(pace, PlayoutDelay(pace, PIECE), piece=SimpleNamespace(seconds=60.0)) == LONGEST


def test_only_the_first_piece_is_held() -> None:
    pace = MediaPace()
    made(pace, 1.0)
    with PlayoutDelay(pace, PIECE) as delay:
        assert [delay.of_piece(0.0) > 0, delay.of_piece(0.1), delay.of_piece(0.2)] == [True, 0.0, 0.0]
