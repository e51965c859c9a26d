"""A `python` stage that is a class with a process of its own, as a large model's would be."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import ClassVar

from omnibus.workers.engines.protocol import StageInput

_CHILD = "import sys; sys.stdin.read()"


class Answering:
    """Answers at once, but never when it is asked to hang; dead with its process."""

    outputs: ClassVar = {"text": "text"}

    def __init__(self) -> None:
        self.child = subprocess.Popen([sys.executable, "-c", _CHILD], stdin=subprocess.PIPE)

    async def __call__(self, given: StageInput) -> str:
        if given.request.text() == "hang":
            await asyncio.Event().wait()
        return "said"

    async def wait_dead(self) -> str:
        code = await asyncio.to_thread(self.child.wait)
        return f"its process ended with {code}"

    def close(self) -> None:
        self.child.kill()
        self.child.communicate()
