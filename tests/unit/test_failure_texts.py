"""What callers are told of exceptions: class and first line, without folders of the server."""

from __future__ import annotations

import pytest

from omnibus.errors import EngineError, EngineRejected
from omnibus.wire import codec
from omnibus.wire.failure import Failure, describe, last_frame, text_of, without_folders

pytestmark = pytest.mark.unit


class NoTextError(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[Errno 2] No such file: '/srv/models/a b/x.bin'", "[Errno 2] No such file: 'a b/x.bin'"),
        ("at /data/thinker/config.json:12, and /data/dit/", "at config.json:12, and dit/"),
        ("see https://hub.example/org/model/file", "see https://hub.example/org/model/file"),
        ("file:///home/one/stage.py", "stage.py"),
        ("~/models/thinker is no model", "thinker is no model"),
        ("text/plain, 3/4 and a / b", "text/plain, 3/4 and a / b"),
        ('File "/usr/lib/python3/x.py", line 3', 'File "x.py", line 3'),
        ("path=/opt/a/b", "path=b"),
    ],
)
def test_absolute_paths_lose_their_folders(text: str, told: str) -> None:
    assert without_folders(text) == told


def test_description_is_class_and_first_line() -> None:
    assert describe(ValueError("one\ntwo")) == "ValueError: one"
    assert describe(KeyError()) == "KeyError"


def test_text_is_told_to_be_missing_when_it_cannot_be_made() -> None:
    assert "NoTextError" in describe(NoTextError())
    assert "KeyboardInterrupt" in text_of(NoTextError())


@pytest.mark.parametrize("error", [ValueError("caf\udce9"), EngineRejected("caf\udce9"), EngineError("\ud83d")])
def test_failure_can_be_sent_when_its_text_holds_half_a_surrogate(error: Exception) -> None:
    failure = Failure.of(error)
    assert codec.decode(codec.encode(failure), Failure) == failure


def test_failure_of_ours_keeps_its_words_but_no_folders() -> None:
    assert (
        Failure.of(EngineRejected("/srv/x/thinker takes no pictures\nsecond")).message
        == "thinker takes no pictures\nsecond"
    )


def test_last_frame_names_file_line_and_function() -> None:
    with pytest.raises(NoTextError) as raised:
        _fail()
    assert last_frame(raised.value).startswith("test_failure_texts.py:")
    assert last_frame(raised.value).endswith(" in _fail")
    assert last_frame(ValueError()) == ""


def _fail() -> None:
    raise NoTextError
