"""Virtual environments with packages that are tested against, made once into the user's cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def cached_venv(name: str, packages: Sequence[str]) -> Path:
    """The interpreter of an environment with these packages; made anew when another one is asked for."""
    digest = hashlib.sha256(" ".join((sys.version, *packages)).encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "omnibus-tests")
    venv = cache / f"{name}-{digest}"
    interpreter = venv / "bin" / "python"
    if not (venv / "complete").exists():
        for old in cache.glob(f"{name}-*"):
            shutil.rmtree(old, ignore_errors=True)
        uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        assert uv is not None, "install the extra dev, which brings uv"
        _run(uv, "venv", "-q", "--python", sys.executable, venv)
        _run(uv, "pip", "install", "-q", "--no-config", "--python", interpreter, *packages)
        (venv / "complete").touch()
    return interpreter


def bare_environment(**more: str) -> dict[str, str]:
    """The environment for programs of such a venv, which finds nothing of this one's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "OMNIBUS", "OPENAI"))}
    return {**kept, **more}


def _run(*words: str | Path) -> None:
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"{words}: {done.stderr}"
