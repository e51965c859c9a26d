"""Processes whose wall clock can be stepped while they run."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

_SOURCE = Path(__file__).with_suffix(".c")


class ClockStep:
    """The environment of a process, and how far its wall clock is off; whole seconds."""

    def __init__(self, folder: Path) -> None:
        """Compiles the shim there, with the machine's C compiler."""
        self._library, self._file = folder / "clock_step.so", folder / "clock_step"
        if not self._library.exists():
            words = ["cc", "-shared", "-fPIC", "-O1", "-o", str(self._library), str(_SOURCE), "-ldl"]
            subprocess.run(words, check=True, timeout=60)
        self.set(0)

    @property
    def env(self) -> Mapping[str, str]:
        return {"LD_PRELOAD": str(self._library), "CLOCK_STEP_FILE": str(self._file)}

    def set(self, seconds: int) -> None:
        """Step the clock so that it is this far ahead of the true time, or behind."""
        self._file.write_text(str(seconds))
