"""How busy the device is, and how much of its memory is taken. Imports torch."""

from __future__ import annotations

import threading
from statistics import fmean
from typing import Self

import torch

_EVERY = 0.05
"""Seconds between two samples."""


class Utilisation:
    """Samples the utilisation of the device, percent, while its context is open; `mean` is None where nobody can say it."""

    def __init__(self) -> None:
        self._samples: list[int] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="utilisation", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    @property
    def mean(self) -> float | None:
        return round(fmean(self._samples), 1) if self._samples else None

    def _sample(self) -> None:
        if not torch.cuda.is_available():
            return
        while not self._end.wait(_EVERY):
            try:
                self._samples.append(torch.cuda.utilization())  # by nvidia-ml-py
            except (ModuleNotFoundError, RuntimeError):
                return


def used_mib() -> int | None:
    """Memory of the device that is taken, by whatever process; None without one."""
    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    return int((total - free) >> 20)
