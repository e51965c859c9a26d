"""The wheel, installed alone: the package without its repository, its developers' tools and any heavy engine."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import omnibus

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

ROOT = Path(omnibus.__file__).parents[1]
UV = str(Path(sys.executable).parent / "uv")
SHIPPED = ("omnibus/omni_tiny/checkpoints/dit/empty_prompt.npy", "omnibus/_data/pipelines/omni-tiny.yaml",
           "omnibus/_data/nats/balanced.conf", "omnibus/_data/nats/production.conf",
           "omnibus/frontdoor/ui/index.html", "omnibus/frontdoor/ui/app.js", "omnibus/frontdoor/ui/tokens.css")  # fmt: skip


def run(*words: str | Path, cwd: Path) -> str:
    # uv does not read pip's configuration, so a local wheel folder is handed over.
    links = {"UV_FIND_LINKS": os.environ["PIP_FIND_LINKS"]} if "PIP_FIND_LINKS" in os.environ else {}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, env={**environment, **links},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


def test_shipped_pipeline_is_valid_when_the_wheel_is_installed_alone(tmp_path: Path) -> None:
    run(UV, "build", "--wheel", "--out-dir", tmp_path / "dist", ROOT, cwd=tmp_path)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert set(SHIPPED) <= names
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"omnibus"}

    python = tmp_path / "venv" / "bin" / "python"
    run(UV, "venv", "--python", sys.executable, tmp_path / "venv", cwd=tmp_path)
    run(UV, "pip", "install", "--python", python, wheel, cwd=tmp_path)
    heavy = (
        "import importlib.util as u; print([n for n in ('torch', 'vllm', 'transformers', 'tools') if u.find_spec(n)])"
    )
    assert run(python, "-c", heavy, cwd=tmp_path).strip() == "[]"
    assert "omni-tiny" in run(python.parent / "omnibus", "pipeline", "validate", "omni-tiny", cwd=tmp_path)
