"""Tables of the command line: what is in their cells, and when they are printed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from omnibus.cli.tables import make_table, show

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("cell", ["[1, 2] at [::1]:4222", "a [red]word[/] and [/nothing]", r"a \[b] and C:\[x]\y"])
def test_cell_is_shown_as_it_is_when_it_has_brackets(cell: str, capsys: pytest.CaptureFixture[str]) -> None:
    show(make_table(("said",), [(cell,)]))
    assert capsys.readouterr().out.splitlines() == ["said", cell]


def test_table_is_there_at_once_when_it_is_piped_and_another_follows() -> None:
    program = "import sys; from omnibus.cli.tables import make_table, show; show(make_table(['a'], [['b']])); sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
    with subprocess.Popen([sys.executable, "-c", program], env=buffered, **pipes) as waiting:
        assert waiting.stdout is not None
        killing = threading.Timer(10.0, waiting.kill)
        killing.start()
        assert waiting.stdout.readline() == b"a\n"
        assert waiting.stdout.readline() == b"b\n"
        assert waiting.poll() is None, "it was printed before the end"
        killing.cancel()
        waiting.kill()
