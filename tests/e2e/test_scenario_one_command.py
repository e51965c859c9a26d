"""Scenario A: one command runs every stage, as `vllm serve MODEL --omni` does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.scenario import replicas_up, wrong_answers
from tools.serving import Serving

pytestmark = pytest.mark.e2e


def test_every_modality_is_right_when_one_command_runs_every_stage(omni_tiny: Serving, tmp_path: Path) -> None:
    assert replicas_up(omni_tiny.nats_url) == {"thinker": 1, "dit": 1, "talker": 1, "code2wav": 1, "clip": 1}
    assert wrong_answers(omni_tiny.nats_url, "text,image,audio,video", tmp_path) == {}
