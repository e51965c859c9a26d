"""NVIDIA's aiperf against a front door, unmodified, in an environment of its own: chats, pictures, films."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from omnibus.pipeline.loading import load_pipeline
from omnibus.workers.engines.checkpoints import resolve_model
from tests.support.cached_venv import bare_environment, cached_venv

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]
REQUESTS = 4
SENTENCES = ("a red circle left of a blue square", "a green cross above a white circle")
TOKENS = ("--isl", "32", "--osl", "8")
OF_A_FILE = ("--custom-dataset-type", "single_turn", "--input-file", "sentences.jsonl")
RUNS = {
    "chat": ("smollm2", "--streaming", *TOKENS),
    "image_generation": ("omni-tiny", *OF_A_FILE),
    "video_generation": ("omni-tiny", "--download-video-content", *OF_A_FILE),
}


@pytest.mark.parametrize("endpoint", RUNS)
def test_every_request_is_answered(endpoint: str, url: str, tmp_path: Path) -> None:
    model, *more = RUNS[endpoint]
    aiperf = cached_venv("aiperf", ("aiperf==0.13.0",)).parent / "aiperf"
    (tmp_path / "sentences.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in SENTENCES))
    tokenizer = resolve_model(load_pipeline(model).stages[0].model)
    words = (
        aiperf, "profile", "--model", model, "--url", url.removesuffix("/v1"), "--endpoint-type", endpoint,
        "--tokenizer", tokenizer, "--request-count", str(REQUESTS), "--concurrency", "2",
        "--num-dataset-entries", "2", "--ui", "none", "--output-artifact-dir", str(tmp_path), "--random-seed", "1", *more,
    )  # fmt: skip
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=200, cwd=tmp_path, env=bare_environment(), check=False
    )
    (export,) = tmp_path.rglob("profile_export_aiperf.json") if done.returncode == 0 else [None]
    assert export is not None, f"{done.stdout[-6000:]}{done.stderr[-3000:]}"
    found = json.loads(export.read_text())
    assert found["request_count"]["avg"] == REQUESTS
    assert not found.get("error_summary")
