"""A stage that answers with the process it runs in."""

from __future__ import annotations

import asyncio
import os

from omnibus.workers.engines.protocol import StageInput


async def answer(_stage_input: StageInput) -> str:
    """The process id, after a while."""
    await asyncio.sleep(0.05)
    return str(os.getpid())
