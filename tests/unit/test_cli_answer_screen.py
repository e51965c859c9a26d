"""Text and messages of an answer that goes to files or pipes."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from omnibus.cli.answer_screen import AnswerScreen


def _answer(monkeypatch: pytest.MonkeyPatch, out: Path, err: Path) -> None:
    with out.open("a") as stdout, err.open("a") as stderr, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        patch.setattr(sys, "stderr", stderr)
        screen = AnswerScreen()
        screen.write("a red ")
        screen.say("image saved as a.png")
        stderr.flush()
        screen.write("circle")
        screen.close()


def test_message_breaks_no_line_of_the_text_when_both_go_to_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _answer(monkeypatch, tmp_path / "all", tmp_path / "all")
    assert (tmp_path / "all").read_text() == "a red circle\nimage saved as a.png\n"


def test_text_is_alone_in_its_file_when_messages_go_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _answer(monkeypatch, tmp_path / "text", tmp_path / "messages")
    assert (tmp_path / "text").read_text() == "a red circle\n"
    assert (tmp_path / "messages").read_text() == "image saved as a.png\n"


def test_long_line_costs_no_more_for_each_piece_the_longer_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "text").open("w") as stdout, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        screen = AnswerScreen()
        started = time.process_time()
        for _ in range(60_000):
            screen.write("x" * 200)
        assert time.process_time() - started < 5.0, "copying what is there for each piece takes minutes"
        screen.close()
    assert (tmp_path / "text").stat().st_size == 60_000 * 200 + 1
