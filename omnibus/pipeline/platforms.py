"""The kind of accelerator of this machine, found by its device files: nothing heavy is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

Platform = Literal["cuda", "rocm", "npu", "cpu"]
PLATFORMS: tuple[str, ...] = get_args(Platform)

_DEVICE_FILES: tuple[tuple[Platform, str], ...] = (
    ("cuda", "dev/nvidia[0-9]*"),
    ("cuda", "dev/dxg"),  # NVIDIA's under WSL
    ("rocm", "dev/kfd"),
    ("npu", "dev/davinci[0-9]*"),
)


def detect_platform(root: Path = Path("/")) -> Platform:
    """Name this machine's platform: `cpu` when no driver has made a device file. `root` is the folder of /dev."""
    found = (platform for platform, pattern in _DEVICE_FILES if any(root.glob(pattern)))
    return next(found, "cpu")
