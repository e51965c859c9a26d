"""The standard streams of a command: always open, able to print anything, and no error once nobody reads them."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import TextIO

BROKEN_PIPE_EXIT_CODE = 141
"""Exit code when the reader of stdout has gone (`omnibus status | head -1`), as a shell reports SIGPIPE."""


class OutputLost(Exception):
    """Results cannot be written to stdout: its reader is gone, or its disk is full. No OSError, which others handle."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"cannot write to standard output: {error.strerror}")
        self.exit_code = BROKEN_PIPE_EXIT_CODE if error.errno == errno.EPIPE else 1


def prepare_streams() -> None:
    """Open what the caller has closed, and guard stdout and stderr; streams that a program has replaced stay as they are.

    Libraries take descriptors 0 to 2 for themselves when they are closed, and abort the process.
    """
    for number in range(3):
        _open_if_closed(number)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8")  # noqa: SIM115 lives as long as the process
    if sys.stdout is sys.__stdout__:
        sys.stdout = _guarded(1, sys.stdout, _Results)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _guarded(2, sys.stderr, _Messages)


def outlive_readers() -> None:
    """Let this process go on when nobody reads its stdout any more: a server's lines are no results."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if isinstance(raw, _Results):
        raw.is_optional = True


def read_stdin() -> str:
    """All of stdin as text; raises InvalidRequest when it is none."""
    from omnibus.errors import InvalidRequest  # noqa: PLC0415 commands import when they run

    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"stdin is no UTF-8 text: byte {error.start} is 0x{error.object[error.start]:02x}"
        ) from error


def flush_streams() -> None:
    """Write what is buffered now, while a failure can still be reported; raises OutputLost."""
    sys.stderr.flush()
    sys.stdout.flush()


class _Messages(io.FileIO):
    """Standard error: what cannot be written is dropped, for there is nowhere to say so."""

    def write(self, data: object) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]
        except OSError:
            return memoryview(data).nbytes  # type: ignore[arg-type]


class _Results(io.FileIO):
    """Standard output: raises OutputLost once, and drops everything after it."""

    is_optional = False

    def write(self, data: object) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]
        except OSError as error:
            _discard(self.fileno())
            if self.is_optional:
                return memoryview(data).nbytes  # type: ignore[arg-type]
            raise OutputLost(error) from error


def _open_if_closed(number: int) -> None:
    try:
        os.fstat(number)
    except OSError:
        _discard(number)


def _discard(number: int) -> None:
    """Let a descriptor lead nowhere."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != number:
        os.dup2(nowhere, number)
        os.close(nowhere)


def _guarded(number: int, before: TextIO | None, kind: type[io.FileIO]) -> TextIO:
    """A text stream over a descriptor that replaces what the terminal's encoding does not have."""
    raw = kind(number, "wb", closefd=False)
    lines = number == 2 or (before is not None and bool(before.line_buffering or getattr(before, "write_through", 0)))
    encoding = before.encoding if before is not None else "utf-8"
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding=encoding, errors="replace", line_buffering=lines)
