"""`omnibus chat`: turns, what stops an answer, what ends it, and what the model is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image

from tests.support.served import omnibus, write_pipeline
from tests.support.terminal import Terminal
from tests.support.waiting import eventually
from tools.serving import Serving, serving

pytestmark = pytest.mark.integration

STAGE = """
import asyncio


async def answer(stage_input):
    request = stage_input.request
    turns = request.messages or ()
    yield " | ".join(f"{turn.role}: {_text(turn.content)}" for turn in turns) or f"prompt: {request.prompt}"
    if "slowly" in request.text():
        yield ", begun"
        await asyncio.sleep(60)


def _text(content):
    return content if isinstance(content, str) else "+".join(getattr(part, "text", part.__class__.__name__) for part in content)
"""
PIPELINE = """
name: talk
stages:
- {stage_id: 0, name: only, engine: python, model: "talking:answer", slots: 4, final_output: true, final_output_type: text}
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("chat")
    (folder / "talking.py").write_text(STAGE)
    flags, variables = ("--no-frontdoor", "--nats-port", "0"), {"PYTHONPATH": str(folder)}
    with serving(str(write_pipeline(folder, PIPELINE)), *flags, state_dir=folder / "state", env=variables) as running:
        yield running


def _chat(served: Serving, folder: Path, *words: str) -> Terminal:
    return Terminal("chat", *words, cwd=folder, OMNIBUS_NATS_URL=served.nats_url)


def test_turns_are_sent_when_history_is_wanted(served: Serving, tmp_path: Path) -> None:
    with _chat(served, tmp_path, "--history", "--system", "be kind") as chat:
        chat.read_until("> ")
        chat.type("hello\n")
        chat.read_until("system: be kind | user: hello")
        chat.read_until("> ")
        chat.type("again\n")
        first = "system: be kind | user: hello"
        chat.read_until(f"{first} | assistant: {first} | user: again")
        chat.read_until("> ")
        chat.type("/clear\n")
        chat.read_until("> ")
        chat.type("new\n")
        chat.read_until("system: be kind | user: new")
        chat.read_until("> ")
        chat.type("/quit\n")
        assert chat.wait() == 0


def test_each_line_stands_alone_when_the_first_stage_is_no_chat_model(served: Serving, tmp_path: Path) -> None:
    with _chat(served, tmp_path) as chat:
        for line in ("one", "two"):
            chat.read_until("> ")
            chat.type(f"{line}\n")
            chat.read_until(f"prompt: {line}")
        chat.read_until("> ")
        chat.type("\x04")
        assert chat.wait() == 0


def _interrupt_line(chat: Terminal) -> None:
    """Ctrl-C at the prompt, until the next prompt: Python may be about to wait for a key, and then the next signal counts."""
    for _ in range(6):
        chat.interrupt()
        with suppress(AssertionError):
            chat.read_until("> ", 5.0)
            return
    raise AssertionError(f"no new prompt in {chat.shown!r}")


def test_answer_stops_and_the_chat_goes_on_when_it_is_interrupted(served: Serving, tmp_path: Path) -> None:
    with _chat(served, tmp_path) as chat:
        chat.read_until("> ")
        chat.type("half a line")
        chat.read_until("half a line")
        _interrupt_line(chat)  # a new line, nothing else
        chat.type("slowly\n")
        chat.read_until("prompt: slowly, begun")
        chat.interrupt()
        chat.read_until("stopped")
        chat.read_until("> ")
        chat.type("quick\n")
        chat.read_until("prompt: quick")
        chat.read_until("> ")
        chat.type("\x04")
        assert chat.wait() == 0
        assert "Traceback" not in chat.shown
    asyncio.run(eventually(lambda: "0/4" in omnibus("status", nats=served.nats_url).stdout, 30.0))  # the next heartbeat


def test_file_is_attached_to_the_next_message_only_when_it_is_named(served: Serving, tmp_path: Path) -> None:
    Image.new("RGB", (1, 1)).save(tmp_path / "a.png")
    with _chat(served, tmp_path) as chat:
        chat.read_until("> ")
        chat.type("/image a.png\n")
        chat.read_until("> ")
        chat.type("/image nowhere.png\n")
        chat.read_until("there is no file 'nowhere.png'")
        chat.read_until("> ")
        chat.type("look\n")
        chat.read_until("user: ImagePart+look")
        chat.read_until("> ")
        chat.type("and now\n")
        chat.read_until("prompt: and now")
        chat.read_until("> ")
        chat.type("/hlep\n")
        chat.read_until("there is no /hlep; /help lists")
        chat.type("/help\n/quit\n")
        assert chat.wait() == 0
        assert "/audio FILE" in chat.shown


def test_next_turn_goes_without_a_file_when_the_turn_that_had_it_failed(served: Serving, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    with _chat(served, tmp_path) as chat:
        chat.read_until("> ")
        chat.type("/image notes.txt\n")
        chat.read_until("notes.txt goes with the next message")
        chat.type("look\n")
        chat.read_until("notes.txt: not a picture")
        chat.read_until("> ")
        chat.type("and now\n")
        chat.read_until("prompt: and now")
        chat.type("/quit\n")
        assert chat.wait() == 0


def test_answers_alone_are_printed_when_lines_come_through_a_pipe(served: Serving) -> None:
    done = omnibus("chat", nats=served.nats_url, stdin="one\n\ntwo\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "prompt: one\nprompt: two\n", "")


def test_chat_is_refused_when_a_pipeline_delivers_no_text(served: Serving, tmp_path: Path) -> None:
    text = (
        "name: mute\nstages:\n- {stage_id: 0, name: only, engine: sim, final_output: true, final_output_type: image}\n"
    )
    mute = write_pipeline(tmp_path, text)
    assert omnibus("pipeline", "deploy", str(mute), nats=served.nats_url).returncode == 0
    done = omnibus("chat", "-p", "mute", nats=served.nats_url)
    assert (done.returncode, done.stderr) == (
        2,
        "omnibus: pipeline 'mute' delivers no text: there is nothing to talk with\n",
    )
