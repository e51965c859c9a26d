"""The end of an engine, known the moment it happens."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable


class EngineDeath:
    """Whether and why an engine cannot serve any more. Used on one event loop."""

    def __init__(self) -> None:
        self.cause: Exception | None = None
        self._happened = asyncio.Event()

    def record(self, cause: Exception) -> None:
        """It is dead; the first cause counts."""
        self.cause = self.cause or cause
        self._happened.set()

    async def wait(self) -> Exception:
        """The cause, as soon as there is one."""
        await self._happened.wait()
        assert self.cause is not None
        return self.cause


async def first_end(sentinels: Iterable[int]) -> None:
    """Return when one of some processes has ended, given the `sentinel` of each (see multiprocessing.Process).

    Raises OSError when one of them is closed already.
    """
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    ours: list[int] = []  # the owner of a sentinel may close it, and its number be another file's at once
    try:
        for sentinel in sentinels:
            ours.append(os.dup(sentinel))
            loop.add_reader(ours[-1], ended.set)
        await ended.wait()
    finally:
        for file in ours:
            loop.remove_reader(file)
            os.close(file)
