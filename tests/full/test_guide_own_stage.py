"""The guide to a stage of one's own runs as it stands: its files are written, its commands run, and what it shows comes out."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import omnibus as package
from omnibus.broker.connection import connect
from omnibus.client.producer import Producer
from omnibus.client.request_events import TextPiece
from omnibus.pipeline.loading import load_pipeline
from omnibus.wire.request import Request, Segment
from tests.support.served import command_line
from tests.support.terminal import Terminal
from tools.serving import Serving, serving

pytestmark = pytest.mark.integration

GUIDE = (Path(package.__file__).parents[1] / "docs" / "guide" / "own-stage.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
EXAMPLES = [
    (command, shown)
    for language, block in BLOCKS
    if language == "console"
    for command, shown in re.findall(r"^\$ omnibus (.*)\n((?:[^$].*\n)*)", block, re.MULTILINE)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reader's folder: `stages.py` with all that the guide adds to it, the pipelines, and a picture."""
    folder = tmp_path_factory.mktemp("guide")
    (folder / "stages.py").write_text("".join(block for language, block in BLOCKS if language == "python"))
    for block in (block for language, block in BLOCKS if language == "yaml"):
        (folder / f"{block.split()[1]}.yaml").write_text(block)
    Image.fromarray(np.full((4, 4, 3), 200, np.uint8)).save(folder / "photo.png")
    return folder


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Serving]:
    flags = ("--no-frontdoor", "--nats-port", "0")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("OMNIBUS_ALLOWED_MODULES", raising=False)
        with serving("own.yaml", *flags, state_dir=folder / "state") as first:
            flags = ("--no-frontdoor", "--nats", first.nats_url)
            with (
                serving("more.yaml", *flags, state_dir=folder / "other"),
                serving("flowing.yaml", *flags, state_dir=folder / "third"),
                serving("talking.yaml", *flags, state_dir=folder / "fourth"),
                serving("session.yaml", *flags, state_dir=folder / "fourth"),
            ):
                yield first


@pytest.mark.parametrize(("command", "shown"), EXAMPLES, ids=[command for command, _ in EXAMPLES])
def test_command_of_the_guide_shows_what_it_says(served: Serving, folder: Path, command: str, shown: str) -> None:
    words = shlex.split(command)
    words += [] if "--pipeline" in words else ["--pipeline", "own"]  # the reader serves one at a time
    done = subprocess.run(
        [*command_line(*words), "--nats", served.nats_url],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    expected = [re.escape(line).replace("…", ".*") for line in shown.splitlines()]
    lines = (done.stdout + done.stderr).splitlines()
    assert len(lines) == len(expected), done
    assert all(re.fullmatch(pattern, line.rstrip()) for pattern, line in zip(expected, lines, strict=True)), done


def test_picture_is_filtered_as_the_guide_says(served: Serving, folder: Path) -> None:
    test_command_of_the_guide_shows_what_it_says(served, folder, *EXAMPLES[1])
    picture = np.asarray(Image.open(folder / "out" / "image-filter.png"))
    assert picture.shape == (4, 4, 3)
    assert picture.max() < 160, "200 is light, its negative is not"


def test_picture_is_refused_at_once_when_it_cannot_be_read(served: Serving, folder: Path) -> None:
    picture = (folder / "photo.png").read_bytes()
    (folder / "broken.png").write_bytes(picture[:-30])  # its head is whole
    words = ("submit", "--pipeline", "more", "-m", "image", "--image", "broken.png", "negative")
    done = subprocess.run(
        [*command_line(*words), "--nats", served.nats_url],
        cwd=folder, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, ""), done
    assert done.stderr == "omnibus: the picture cannot be decoded: image file is truncated\n"


def test_steps_are_a_bar_and_text_stays_on_one_line_when_there_is_a_terminal(served: Serving, folder: Path) -> None:
    words = ("submit", "--pipeline", "more", "--image", "photo.png", "negative", "--nats", served.nats_url)
    with Terminal(*words, cwd=folder) as terminal:
        terminal.read_until("image saved as")
        assert terminal.wait() == 0
        assert "n e g a t i v e" in terminal.shown
        assert re.search(r"filter ━+ 4/4", terminal.shown)


async def test_stage_listens_while_it_speaks(served: Serving, folder: Path) -> None:
    spec, words = load_pipeline(str(folder / "talking.yaml")), [f"w{number}" for number in range(600)]
    async with connect(served.nats_url, name="guide") as connection, Producer(connection) as producer:
        submission = await producer.submit(spec, Request(prompt=" ".join(words), resumable=True))
        async with aclosing(submission.events()) as events:
            async for event in events:
                if isinstance(event, TextPiece):
                    break  # it speaks, for half a minute
        await producer.send_segment(spec, submission.rid, Segment(prompt="and now", end=True))
        *cut, last, end = (await submission.result()).outputs[0].text.split()
    assert (last, end) == ("and", "now")
    assert 0 < len(cut) < len(words)
    assert cut == words[: len(cut)]


def test_first_stage_takes_20_lines() -> None:
    lines = sum(block.count("\n") for _, block in BLOCKS[:2])
    assert BLOCKS[2][1].startswith("omnibus serve own.yaml")
    assert lines <= 20
