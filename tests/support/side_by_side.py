"""How pytest-xdist hands out tests by file, mended where it waited for ever."""

from __future__ import annotations

from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

SHARING = "tests/full/clients"
"""The folder whose files share their engines."""


class FileScheduling(LoadFileScheduling):
    """A file's tests go to one process. What a process that ended was at is not tried again, and its other tests are run."""

    def _split_scope(self, nodeid: str) -> str:
        return SHARING if nodeid.startswith(SHARING) else str(super()._split_scope(nodeid))

    def remove_node(self, node: WorkerController) -> str | None:
        files = self.assigned_work.pop(node)
        for file in files.values():
            for test, done in file.items():
                if not done:
                    file[test] = True
                    self.workqueue.update({name: file for name, file in files.items() if not all(file.values())})
                    self._give_out()
                    return test
        return None

    def schedule(self) -> None:
        super().schedule()
        self._give_out()

    def _give_out(self) -> None:
        """A process begins a test when it knows the next, or that there is none."""
        for node in self.nodes:
            if node in self.registered_collections:
                self._reschedule(node)
        if self.collection_is_completed and not self.workqueue:
            for node in self.nodes:
                node.shutdown()
