"""A nats-server whose data lie on a disk that is soon full: a tmpfs in a mount namespace, gone when the context ends."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omnibus.broker.server_binary import find_binary

_DEADLINE = 10.0


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A program to run as nats-server; what it keeps under `folder`/nats/nats has room for `size`, such as "64m"."""
    store = folder / "nats" / "nats"
    store.mkdir(parents=True)
    own_user = [] if os.geteuid() == 0 else ["-Ur"]
    mount = f"mount -t tmpfs -o size={size} tmpfs {shlex.quote(str(store))} && echo ready && exec cat"
    holder = subprocess.Popen(
        ["unshare", *own_user, "-m", "sh", "-c", mount], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n", "no tmpfs could be mounted"
        (folder / "holder").write_text(str(holder.pid))
        enter = ["nsenter", *(["-U", "--preserve-credentials"] if own_user else []), "-t", str(holder.pid), "-m"]
        program = folder / "nats-server-on-small-disk"
        program.write_text(f'#!/bin/sh\nexec {shlex.join(enter)} -- {shlex.quote(str(find_binary(None)))} "$@"\n')
        program.chmod(0o755)
        yield program
    finally:
        holder.kill()
        holder.communicate(timeout=_DEADLINE)


def fill(folder: Path) -> None:
    """Write until the disk is full."""
    with _ballast(folder).open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            return


def empty(folder: Path) -> None:
    """Take away what `fill` wrote."""
    _ballast(folder).unlink()


def _ballast(folder: Path) -> Path:
    """Seen from outside of the namespace."""
    root = Path(f"/proc/{(folder / 'holder').read_text()}/root")
    return root / (folder / "nats" / "nats" / "ballast").resolve().relative_to("/")
