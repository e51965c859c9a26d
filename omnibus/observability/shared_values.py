"""The numbers of metrics in files that other processes read, as prometheus_client lays them out.

Its own class looks its place up for every increment, and packs it: twice the time, which each task pays a dozen times.
"""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import Any

from prometheus_client.mmap_dict import MmapedDict, mmap_key


def shared_values(folder: Path, files: dict[str, MmapedDict]) -> type:
    """The class of values that prometheus_client uses, over the files of one process in a folder, which it adds to `files`."""
    lock = Lock()

    class SharedValue:
        """A number and, of some gauges, the time when it was set."""

        _multiprocess = True

        def __init__(self, kind: str, *named: Any, multiprocess_mode: str = "", **_: object) -> None:
            """`named`: the metric, the sample, names and values of its labels, and the help text."""
            file_name, key = f"{kind}_{multiprocess_mode}" if kind == "gauge" else kind, mmap_key(*named)
            with lock:
                if file_name not in files:
                    files[file_name] = MmapedDict(str(folder / f"{file_name}_own.db"))  # type: ignore[no-untyped-call]
                file = files[file_name]
                file.read_value(key)  # type: ignore[no-untyped-call] # which makes its place
                at = file._positions[key]  # noqa: SLF001 it has no public name
                # A file that grows is mapped anew; the pages are the same.
                self._place = memoryview(file._m)[at : at + 16].cast("d")  # noqa: SLF001

        def inc(self, amount: float) -> None:
            with lock:
                self._place[0] += amount

        def set(self, value: float, timestamp: float | None = None) -> None:
            with lock:
                self._place[0], self._place[1] = value, timestamp or 0.0

        def get(self) -> float:
            return self._place[0]

        def set_exemplar(self, _exemplar: object) -> None:
            """Files have none."""

        def get_exemplar(self) -> None:
            """Files have none."""

    return SharedValue
