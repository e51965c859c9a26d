"""A sentence from Node, over nothing but NATS, through the real engines."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.node import ask_from_node, install_client
from tools.omni_tiny.grading import grade_audio, grade_image, grade_text
from tools.serving import Serving

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]  # whoever is first waits for the engines

PROMPT = "paint a yellow triangle above a purple cross"


def test_node_gets_the_right_text_image_and_sound_when_it_asks(omni_tiny: Serving, tmp_path: Path) -> None:
    client = install_client(tmp_path)
    done = ask_from_node(client, PROMPT, "--out", str(tmp_path), nats=omni_tiny.nats_url, pipeline="omni-tiny")

    assert done.returncode == 0, done.stderr
    assert grade_text(PROMPT, done.stdout)
    assert grade_image(PROMPT, (tmp_path / "image-1-0.png").read_bytes())
    assert grade_audio(PROMPT, (tmp_path / "audio-3-0.wav").read_bytes())
