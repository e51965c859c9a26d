"""The checks by name, each run in a process of its own, so that one that hangs or crashes takes nothing with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from omnibus.lineage import PARENT_VARIABLE, die_with_parent, terminate_alive_proc

Outcome = dict[str, Any]
"""`ok` (None: it cannot run here), `seconds`, `figures`, and `why` where it is not ok."""
DEADLINES: Mapping[str, float] = {
    "device": 60.0, "checkpoints": 90.0, "handoff": 60.0, "diffusers_batches": 120.0, "two_replicas": 120.0,
    "vllm_text": 150.0, "hidden_states": 150.0, "sleep_wake": 150.0,
}  # fmt: skip
"""Seconds on a GPU, in the order in which the checks run. Without the first two the others cannot."""
_SLOWER = 2.0
"""A CPU has so many times as long."""
_GRACE, _LAST_LINES = 8.0, 6


def run_apart(name: str, folder: Path, *, cpu: bool, seconds: float) -> Outcome:
    """Run a check in a child, and end it and all its processes at its deadline, after so many seconds at the latest."""
    log, answer, began = folder / f"{name}.log", folder / f"{name}.json", time.monotonic()
    seconds = min(DEADLINES[name] * (_SLOWER if cpu else 1.0), seconds)
    words = [
        sys.executable,
        "-m",
        "tools.gpu_check",
        "--one",
        name,
        "--folder",
        str(folder),
        *(["--cpu"] if cpu else []),
    ]
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if cpu else {}
    with log.open("wb") as output:
        child = subprocess.Popen(
            words, env={**os.environ, **hidden, PARENT_VARIABLE: str(os.getpid())}, stdin=subprocess.DEVNULL,
            stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        why: str | None = f"it was not done after {seconds:g} s{_tail(log)}"
    else:
        why = None if answer.exists() else f"it ended with code {child.returncode}{_tail(log)}"
    finally:
        terminate_alive_proc(child, _GRACE, by=signal.SIGINT)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
    if why is None:
        outcome: Outcome = json.loads(answer.read_text())
    else:
        outcome = {"ok": False, "why": why, "figures": {}}
    return {**outcome, "seconds": round(time.monotonic() - began, 1)}


def run_here(name: str, folder: Path, *, cpu: bool) -> None:
    """Run a check in this process, and leave its outcome in the folder."""
    die_with_parent()
    from tools.gpu_check import checks  # noqa: PLC0415 torch: seconds, and it may fail
    from tools.gpu_check.kit import Impossible, Kit  # noqa: PLC0415

    outcome: Outcome = {"ok": True, "figures": {}}
    try:
        outcome["figures"] = getattr(checks, name)(Kit(folder, cpu))
    except Impossible as error:
        outcome |= {"ok": None, "why": str(error)}
    except Exception as error:  # noqa: BLE001 the root of a check, whose failure is its outcome
        traceback.print_exc()
        outcome |= {"ok": False, "why": f"{type(error).__name__}: {error}"}
    unfinished = folder / f"{name}.unfinished"
    unfinished.write_text(json.dumps(outcome))
    unfinished.replace(folder / f"{name}.json")


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
    return f"; the end of its log: {' | '.join(lines)}" if lines else ""
