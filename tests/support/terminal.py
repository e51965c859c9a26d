"""A command on a terminal of its own, as a person has it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.served import command_line

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|\r")
_ROWS, _COLUMNS = 40, 120
_IN_TERMINAL = """
import fcntl, os, signal, sys, termios
signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job has it ignored, and hands that on
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


class Terminal:
    """Runs a command; a context manager that kills it at the end."""

    def __init__(self, *words: str, cwd: Path | None = None, **variables: str) -> None:
        self._fd, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, _COLUMNS, 0, 0))
        self._process = subprocess.Popen(
            (sys.executable, "-I", "-S", "-c", _IN_TERMINAL, *command_line(*words)),
            stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, cwd=cwd,
            env={**os.environ, "TERM": "xterm-256color", **variables},
        )  # fmt: skip
        os.close(theirs)
        self.shown = ""
        """All that was shown so far, without control sequences."""
        self._read = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._fd)

    def read_until(self, wanted: str, seconds: float = 30.0) -> str:
        """What is shown after what was read before, up to a text and the end of its line, as far as that has come."""
        until = time.monotonic() + seconds
        while wanted not in self.shown[self._read :]:
            assert time.monotonic() < until, f"{wanted!r} was not shown in {self.shown[self._read :]!r}"
            if not self._receive(0.5) and self._process.poll() is not None:
                raise AssertionError(f"it ended without {wanted!r}: {self.shown[self._read :]!r}")
        start = self._read
        self._read = self.shown.index(wanted, start) + len(wanted)
        return self.shown[start : self._read]

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.type("\x03")

    def wait(self, seconds: float = 60.0) -> int:
        """The exit code; what is still shown is read meanwhile."""
        until = time.monotonic() + seconds
        while self._process.poll() is None and time.monotonic() < until:
            self._receive(0.2)
        return self._process.wait(1.0)

    def _receive(self, seconds: float) -> bool:
        if not select.select([self._fd], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # nobody has it open any more
            return False
        self.shown += _CONTROL.sub("", data.decode(errors="replace"))
        return bool(data)
