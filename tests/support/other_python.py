"""An environment beside that of the tests: its own omnibus and its own numpy, all else from here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

import omnibus

NUMPY = "2.2.6"
"""Another one than the tests'."""
ROOT = Path(omnibus.__file__).parents[1]
_UV = str(Path(sys.executable).parent / "uv")


def make_environment(folder: Path) -> Path:
    """Make a virtual environment with the wheel of the working tree; returns its interpreter."""
    _run(_UV, "venv", "--python", sys.executable, folder)
    python = folder / "bin" / "python"
    _run(_UV, "pip", "install", "--python", python, "--no-deps", f"numpy=={NUMPY}", ROOT)
    ours = Path(np.__file__).parents[1]
    (site_packages(python) / "from-the-tests.pth").write_text(f"{ours}\n")
    return python


def site_packages(python: Path) -> Path:
    (found,) = python.parents[1].glob("lib/python*/site-packages")
    return found


def _run(*words: str | Path) -> None:
    # uv does not read pip's configuration, so a local wheel folder is handed over.
    links = {"UV_FIND_LINKS": os.environ["PIP_FIND_LINKS"]} if "PIP_FIND_LINKS" in os.environ else {}
    done = subprocess.run(
        [str(word) for word in words], env={**os.environ, **links}, capture_output=True, text=True, timeout=240, check=False
    )  # fmt: skip
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
