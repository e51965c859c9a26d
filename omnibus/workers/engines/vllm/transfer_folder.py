"""The folder through which EngineCore and its replica hand over what is too large for vLLM's own messages; one an engine."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

_PREFIX = "omnibus-engine-"


class TransferFolder:
    """A new folder of this process; what replicas that were killed left is removed first."""

    def __init__(self) -> None:
        _sweep(Path(tempfile.gettempdir()))
        self.path = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def _sweep(root: Path) -> None:
    for folder in root.glob(f"{_PREFIX}*"):
        pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(folder, ignore_errors=True)
