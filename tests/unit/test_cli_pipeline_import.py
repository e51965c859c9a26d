"""`omnibus pipeline import` where nothing can be imported: clear errors, and no file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "give SOURCE, or --all"),
        (("bagel", "--all"), "give SOURCE, or --all"),
        (("--all",), "--all needs a folder"),
        (("--all", "--output", "{there}", "--name", "zoo"), "takes no --name"),
        (
            ("bagel", "--output", "{there}", "--python", "/no/such/python"),
            "/no/such/python cannot be run: No such file or directory; name by --python the interpreter of an environment",
        ),
        (("bagel", "--output", "{there}", "--python", "{bare}"), "has no vLLM-Omni that can be asked"),
        (("bagel", "--output", "{there}", "--python", "{bare}"), "install omnibus-vllm-omni[gpu] in its environment"),
        (("bagel", "--output", "{there}", "--python", "/bin/echo"), "/bin/echo has no vLLM-Omni that can be asked"),
    ],
)
def test_import_is_refused_when_it_cannot_work(words: tuple[str, ...], says: str, tmp_path: Path) -> None:
    there = tmp_path / "there"
    given = [word.format(there=there, bare=bare_python(tmp_path)) for word in words]
    done = subprocess.run(
        [sys.executable, "-m", "omnibus.cli", "pipeline", "import", *given], capture_output=True, text=True, check=False,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not there.exists()


def bare_python(folder: Path) -> Path:
    """An interpreter without any packages: a link to this one beside the file that makes an environment."""
    if not (folder / "bin").exists():
        (folder / "bin").mkdir()
        (folder / "bin" / "python").symlink_to(Path(sys.executable).resolve())
        (folder / "pyvenv.cfg").write_text(f"home = {Path(sys.executable).resolve().parent}\n")
    return folder / "bin" / "python"
