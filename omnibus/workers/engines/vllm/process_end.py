"""The end of processes that somebody else has started."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable


async def first_end(sentinels: Iterable[int], ended: asyncio.Event) -> None:
    """Set `ended` when one of some processes ends, given the `sentinel` of each (see multiprocessing.Process); wait for it."""
    loop, ours = asyncio.get_running_loop(), list[int]()
    try:
        for sentinel in sentinels:
            # A copy: the owner of a sentinel may close it, and its number be another file's at once.
            ours.append(os.dup(sentinel))
            loop.add_reader(ours[-1], ended.set)
        await ended.wait()
    except OSError:  # closed already: its process has ended
        ended.set()
    finally:
        for file in ours:
            loop.remove_reader(file)
            os.close(file)
