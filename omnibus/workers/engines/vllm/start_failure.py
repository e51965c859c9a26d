"""The reason why EngineCore did not start. It is raised in a process of vLLM's, and the replica hears only that there is one."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from omnibus.wire.failure import text_of

_FILE = "OMNIBUS_VLLM_START_FAILURE"
"""The variable by which vLLM's processes know where the reason goes."""
_LOGGER = "vllm.v1.engine.core"


class _NoteReason(logging.Handler):
    """Writes the exception that EngineCore logs as it gives up to a file."""

    def __init__(self, file: Path) -> None:
        super().__init__(logging.ERROR)
        self._file = file

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the first exception: later ones follow from it."""
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and not self._file.exists():
            self._file.write_text(f"{type(error).__name__}: {text_of(error)}")


def note_reason() -> None:
    """Have this process of vLLM's leave the reason when its engine does not start."""
    if file := os.environ.get(_FILE):
        logging.getLogger(_LOGGER).addHandler(_NoteReason(Path(file)))


@contextmanager
def reason_named() -> Iterator[None]:
    """Raises RuntimeError with EngineCore's own reason in place of vLLM's, which names none."""
    with TemporaryDirectory(prefix="omnibus-start-") as folder:
        file = Path(folder) / "reason"
        os.environ[_FILE] = str(file)
        try:
            yield
        except RuntimeError as error:
            if not file.exists():
                raise
            raise RuntimeError(file.read_text()) from error
        finally:
            os.environ.pop(_FILE, None)
