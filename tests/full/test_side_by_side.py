"""Tests side by side are all run, and end, when processes of theirs end or stand still."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration
_CONFTEST = "from tests.conftest import pytest_xdist_make_scheduler\n"
_ONE = "def test_one():\n    pass\n"
_ENDS = "import os\ndef test_before():\n    pass\ndef test_ends():\n    os._exit(1)\ndef test_after():\n    pass\n"
_STANDS = (
    "import time\ndef test_before():\n    pass\ndef test_stands():\n    time.sleep(60)\ndef test_after():\n    pass\n"
)
_HOLDS = "import re\ndef test_holds_the_gil():\n    re.match('(a+)+$', 'a' * 60 + 'b')\ndef test_after():\n    pass\n"


def test_all_others_are_run_when_processes_end(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(_CONFTEST)
    for number, text in enumerate((_ENDS, _ONE, _STANDS, _HOLDS, _ONE)):
        (tmp_path / f"test_{number}.py").write_text(text)
    bounds = ("-o", "faulthandler_timeout=3", "-o", "faulthandler_exit_on_timeout=true")
    command = (
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-n",
        "2",
        "--max-worker-restart",
        "4",
        *bounds,
    )
    ran = subprocess.run((*command, str(tmp_path)), capture_output=True, text=True, timeout=100, check=False)
    assert ran.returncode == 1, ran.stdout
    assert "3 failed, 7 passed" in ran.stdout, ran.stdout
