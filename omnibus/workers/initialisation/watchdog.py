"""Ends a process that is stuck while it starts, when its own event loop cannot."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading


class Watchdog:
    """A thread that exits the process when an expected step has not ended in time.

    It is for steps that hold the event loop: an import or a constructor that never returns. The stacks of all threads go to
    stderr, and after them one line that names `who`, so that a supervisor shows both.
    """

    def __init__(self, who: str, exit_code: int) -> None:
        self._who, self._exit_code = who, exit_code
        self._timer: threading.Timer | None = None

    def expect(self, what: str, seconds: float) -> None:
        """Exit unless `rest`, or another `expect`, is called within so many seconds."""
        self.rest()
        self._timer = threading.Timer(seconds, self._bite, (what, seconds))
        self._timer.daemon = True
        self._timer.start()

    def rest(self) -> None:
        """Expect nothing any more; idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _bite(self, what: str, seconds: float) -> None:
        faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
        os.write(2, f"{self._who}: {what} took more than {seconds:g} s; the stacks above say where it hangs\n".encode())
        os._exit(self._exit_code)
