"""How long the first piece of a sound is held back."""

from __future__ import annotations

import pytest

from omnibus.workers.playout_delay import MARGIN, MediaPace, PlayoutDelay


def made(pace: MediaPace, interval: float, pieces: int = 3) -> None:
    with PlayoutDelay(pace) as delay:
        for number in range(pieces):
            delay.of(0.16, number * interval)


def test_the_first_sound_that_a_replica_makes_begins_at_once() -> None:
    with PlayoutDelay(MediaPace()) as delay:
        assert delay.of(0.16, 0.0) == 0.0


def test_a_sound_begins_at_once_where_the_next_piece_is_there_before_the_first_has_played() -> None:
    pace = MediaPace()
    made(pace, 0.02)
    with PlayoutDelay(pace) as delay:
        assert delay.of(0.16, 0.0) == 0.0


def test_a_sound_begins_as_much_later_as_the_next_piece_may_be_late_among_those_that_are_made_now() -> None:
    pace = MediaPace()
    made(pace, 0.03)
    with PlayoutDelay(pace), PlayoutDelay(pace), PlayoutDelay(pace), PlayoutDelay(pace) as delay:
        assert delay.of(0.16, 0.0) == pytest.approx(4 * MARGIN * 0.03 - 0.16)
    with PlayoutDelay(pace) as delay:
        assert delay.of(0.16, 0.0) == 0.0


def test_only_the_first_piece_is_held_and_never_longer_than_it_plays() -> None:
    pace = MediaPace()
    made(pace, 60.0)
    with PlayoutDelay(pace) as delay:
        assert [delay.of(0.16, 0.0), delay.of(0.16, 0.1)] == [0.16, 0.0]


def test_what_was_slow_once_is_forgotten() -> None:
    pace = MediaPace()
    made(pace, 60.0)
    made(pace, 0.02, pieces=66)
    with PlayoutDelay(pace) as delay:
        assert delay.of(0.16, 0.0) == 0.0
