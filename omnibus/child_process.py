"""Programs started from an event loop, without fork.

uvloop starts a program by fork, while it holds the GIL. Fork runs the handlers of every library, and OpenBLAS's (numpy's) waits
for threads that compute: a process whose other thread multiplied two arrays then stood still for ever. `subprocess` starts one
by vfork, which runs none, as long as it is given no `preexec_fn`.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

_LINE_LIMIT = 1 << 16


class ChildProcess:
    """A program that runs, or has ended; see `start_child`."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        self._loop = asyncio.get_running_loop()
        self._ended = self._loop.create_future()
        self.pid = popen.pid
        self.stdout: asyncio.StreamReader | None = None
        """Its output as it comes, when PIPE was asked for, and so for its errors."""
        self.stderr: asyncio.StreamReader | None = None
        self._pipes: list[asyncio.ReadTransport] = []

    @property
    def returncode(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._popen.returncode

    async def wait(self) -> int:
        """Its exit code, when it has ended. Its output may be held open by others, and is read for itself."""
        await asyncio.shield(self._ended)
        assert self._popen.returncode is not None
        return self._popen.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal; nothing happens when it has ended, and so for the next two."""
        self._popen.send_signal(number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """Read nothing more of its output, which others may hold open after its end."""
        for pipe in self._pipes:
            pipe.close()

    async def read(self, pipe: IO[bytes] | None, limit: int) -> asyncio.StreamReader | None:
        """Begin to read one of its pipes, if there is one; lines of at most `limit` bytes."""
        if pipe is None:
            return None
        reader = asyncio.StreamReader(limit)
        transport, _ = await self._loop.connect_read_pipe(lambda: _Output(reader), pipe)
        self._pipes.append(transport)
        return reader

    def watch(self) -> None:
        """Begin to wait for its end, in a thread of its own."""
        threading.Thread(target=self._reap, name=f"child-{self.pid}", daemon=True).start()

    def _reap(self) -> None:
        self._popen.wait()
        if self._popen.stdin is not None:
            self._popen.stdin.close()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._set_ended)

    def _set_ended(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)


async def start_child(
    *argv: str | Path,
    stdin: int | IO[bytes] | None = None,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
    start_new_session: bool = False,
    limit: int = _LINE_LIMIT,
) -> ChildProcess:
    """Start a program; parameters are those of `asyncio.create_subprocess_exec`, `limit` the bytes of a line that is read.

    OSError when there is no such program. It is not ended when its ChildProcess is forgotten.
    """
    popen = subprocess.Popen(  # noqa: S603, ASYNC220 it returns when the program is loaded, as asyncio's own does
        argv, stdin=stdin, stdout=stdout, stderr=stderr, env=env, cwd=cwd, pass_fds=pass_fds,
        start_new_session=start_new_session, bufsize=0,
    )  # fmt: skip
    child = ChildProcess(popen)
    try:
        child.watch()
        child.stdout = await child.read(popen.stdout, limit)
        child.stderr = await child.read(popen.stderr, limit)
    except BaseException:
        child.kill()
        child.close()
        raise
    return child


class _Output(asyncio.StreamReaderProtocol):
    def eof_received(self) -> bool:
        super().eof_received()
        return False  # close the pipe; those of sockets are kept, to be written to
