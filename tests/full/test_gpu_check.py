"""The check of GPUs runs small on CPU: one object as its last line, whatever happens, and every check in it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tools.gpu_check.running import DEADLINES, run_apart

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1000)]


def started(*flags: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tools.gpu_check", *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def report_of(check: subprocess.Popen[str]) -> dict[str, Any]:
    output, log = check.communicate(timeout=960)
    report = json.loads(output.splitlines()[-1])
    assert list(report["checks"]) == list(DEADLINES), log
    for outcome in report["checks"].values():
        assert outcome["ok"] or outcome["why"], log
    return report


def test_every_check_passes_on_cpu() -> None:
    check = started("--cpu", "--deadline", "900")
    report = report_of(check)
    assert {name: outcome.get("why") for name, outcome in report["checks"].items() if not outcome["ok"]} == {}
    assert (report["ok"], report["card"], check.returncode) == (True, "CPU", 0)
    batches = report["checks"]["diffusers_batches"]["figures"]
    assert batches["gap_ms_median"] >= 0
    assert 0 < batches["busy_share"] <= 1
    assert batches["utilisation_percent"] is None, "there is no device whose utilisation could be had"
    assert report["checks"]["hidden_states"]["figures"]["shape"][1] == 2


def test_checks_say_why_they_cannot_run_when_there_is_no_device() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.fail("run this where no GPU is")
    check = started("--only", "handoff")
    report = report_of(check)
    assert {outcome["ok"] for outcome in report["checks"].values()} == {None}
    assert "--cpu" in report["checks"]["device"]["why"]
    assert "needs the check device" in report["checks"]["handoff"]["why"]


def test_check_is_ended_at_its_deadline_and_the_rest_is_not_begun_without_time(tmp_path: Path) -> None:
    outcome = run_apart("checkpoints", tmp_path, cpu=True, seconds=0.5)
    assert (outcome["ok"], outcome["figures"]) == (False, {})
    assert outcome["why"].startswith("it was not done after 0.5 s")
    report = report_of(started("--cpu", "--deadline", "3"))
    assert "no time was left" in report["checks"]["device"]["why"]


def test_report_comes_all_the_same_when_it_is_stopped() -> None:
    check = started("--cpu")
    assert check.stderr is not None
    assert check.stderr.readline().startswith("device: ")
    check.send_signal(signal.SIGTERM)
    report = report_of(check)
    assert report["checks"]["device"]["ok"]
    assert "stopped before" in report["checks"]["sleep_wake"]["why"]
