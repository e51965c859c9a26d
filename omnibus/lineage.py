"""Processes that do not outlive their parent, kill -9 included (Linux)."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

PARENT_VARIABLE = "OMNIBUS_PARENT_PID"
"""Set by a supervisor for its children."""
_PR_SET_PDEATHSIG = 1
_TIED = f"""
import ctypes, os, sys
ctypes.CDLL(None).prctl({_PR_SET_PDEATHSIG}, int(sys.argv[2]), 0, 0, 0)
if os.getppid() != int(sys.argv[1]):  # it died before this was armed
    sys.exit(1)
os.execv(sys.argv[3], sys.argv[3:])
"""
# Loaded here: the loader must not run in a freshly forked child.
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies, and the same for every process forked from here.

    Call it first thing in a child. The kernel ties the signal to the *thread* that started the child, so a supervisor
    starts children from a thread that lives as long as itself. When the parent is gone already, exits at once.

    Processes that this one starts by exec (not fork) must call it themselves; a supervisor also ends the whole process
    group of a dead child, which covers those while it lives.
    """
    set_death_signal()
    os.register_at_fork(after_in_child=set_death_signal)
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is not None and os.getppid() != int(parent):
        raise SystemExit(1)


def set_death_signal(number: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when the thread that started it ends; nothing elsewhere than on Linux.

    Not inherited by its children. Safe in a freshly forked child.
    """
    if _libc is not None and _libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")


def tied(argv: Sequence[str], by: signal.Signals = signal.SIGKILL) -> Sequence[str]:
    """Make the command line of a program that the kernel sends a signal when the thread that started it ends.

    For programs that are not ours, by their full path, started by this process. On Linux; elsewhere it is what was given.
    """
    if sys.platform != "linux":
        return argv
    return (sys.executable, "-I", "-S", "-c", _TIED, str(os.getpid()), str(int(by)), *argv)


def terminate_alive_proc(
    process: subprocess.Popen[str] | subprocess.Popen[bytes],
    timeout: float = 5.0,
    *,
    by: signal.Signals = signal.SIGTERM,
) -> int:
    """End a child: ask it with a signal, and kill it when it lives `timeout` seconds later. Returns its exit code.

    Nothing is sent to a child that has ended; either way it is reaped. Blocks.
    """
    if process.poll() is None:
        process.send_signal(by)
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()
