"""Commands whose standard streams are closed, full, broken, or cannot print what is to be printed."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from tests.support.served import command_line, environment, write_pipeline
from tests.support.waiting import eventually
from tools.serving import Serving, serving

pytestmark = pytest.mark.integration

PIPELINE = """
name: short
deadline: 30s
stages:
- {stage_id: 0, name: writer, engine: sim, final_output: true, final_output_type: text,
   engine_args: {outputs: {text: text}, token_rate: 100}}
"""
ANSWERS = [
    ["--help"],
    ["version"],
    ["status"],
    ["status", "--json"],
    ["submit", "naïve – 日本 🎈"],
    ["submit", "--json", "naïve"],
    ["pipeline", "list"],
    ["pipeline", "show", "omni-tiny"],
    ["nats", "plan"],
    ["dead", "list"],
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("serve")
    pipeline = str(write_pipeline(folder, PIPELINE))
    with serving(pipeline, "--port", "0", "--nats-port", "0", state_dir=folder / "state") as running:
        yield running


def _shell(script: str, *words: str, nats: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command within a shell's script, which has it as "$@"."""
    return subprocess.run(
        ["bash", "-c", script, "bash", *command_line(*words)], env={**environment(nats), **variables},
        capture_output=True, encoding="utf-8", errors="replace", timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("words", ANSWERS, ids=" ".join)
@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&- 2>&-"])
def test_command_ends_as_always_when_streams_are_closed(served: Serving, words: list[str], closed: str) -> None:
    done = _shell(f'"$@" {closed}', *words, nats=served.nats_url)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("words", ANSWERS, ids=" ".join)
def test_command_ends_in_silence_when_its_reader_has_gone(served: Serving, words: list[str]) -> None:
    done = _shell('"$@" | true; exit ${PIPESTATUS[0]}', *words, nats=served.nats_url)
    assert done.returncode in (0, 141)  # 0: all was written before the reader ended
    assert done.stderr == ""


@pytest.mark.parametrize("words", ANSWERS, ids=" ".join)
def test_one_line_says_why_when_the_disk_is_full(served: Serving, words: list[str]) -> None:
    done = _shell('"$@" > /dev/full', *words, nats=served.nats_url)
    assert done.returncode == 1
    assert done.stderr == "omnibus: cannot write to standard output: No space left on device\n"


def test_command_ends_as_always_when_its_messages_cannot_be_written(served: Serving) -> None:
    done = _shell('"$@" 2> /dev/full', "submit", "hello", nats=served.nats_url)
    assert (done.returncode, done.stdout) == (0, "hello\n")


def test_request_is_cancelled_when_nobody_reads_its_text_any_more(served: Serving) -> None:
    request = ["submit", "word " * 400, "--request-id", "unread"]
    done = _shell('"$@" | head -c 1; exit ${PIPESTATUS[0]}', *request, nats=served.nats_url)
    assert (done.returncode, done.stderr) == (141, "")
    assert "cancelled" in _shell('"$@"', "status", "unread", nats=served.nats_url).stdout


@pytest.mark.parametrize("words", ANSWERS, ids=" ".join)
def test_what_cannot_be_printed_is_replaced_when_the_terminal_knows_ascii_only(
    served: Serving, words: list[str]
) -> None:
    done = _shell('"$@"', *words, nats=served.nats_url, PYTHONIOENCODING="ascii", LC_ALL="C")
    assert (done.returncode, done.stderr) == (0, "")
    if words == ANSWERS[4]:
        assert done.stdout == "na?ve ? ?? ?\n"


@pytest.mark.parametrize("words", [["submit", "caf\udce9"], ["status", "caf\udce9"], ["pipeline", "show", "caf\udce9"]])
def test_refusal_is_one_line_when_an_argument_is_no_text(served: Serving, words: list[str]) -> None:
    done = _shell('"$@"', *words, nats=served.nats_url)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_prompt_is_refused_when_stdin_is_no_text(served: Serving) -> None:
    done = _shell(r'printf "caf\xe9" | "$@"', "submit", "-", nats=served.nats_url)
    assert done.returncode == 2
    assert "no UTF-8" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&- 2>&-"])
async def test_server_serves_and_ends_in_order_when_streams_are_closed(tmp_path: Path, closed: str) -> None:
    with _Server(tmp_path, f'exec "$@" {closed}') as server:
        await eventually(server.answers, 40.0)
        assert server.stop() == 0


async def test_server_goes_on_when_nobody_reads_what_it_prints(tmp_path: Path) -> None:
    with _Server(tmp_path, 'exec "$@" > >(head -n 1)') as server:
        await eventually(server.answers, 40.0)
        assert server.answers()
        assert server.stop() == 0


class _Server:
    """`omnibus serve` within a shell's script that replaces itself by it."""

    def __init__(self, folder: Path, script: str) -> None:
        self._where = ("--state-dir", str(folder / "state"))
        self._own = {name: value for name, value in os.environ.items() if name != "OMNIBUS_NATS_URL"}
        words = ["serve", str(write_pipeline(folder, PIPELINE)), "--no-frontdoor", "--nats-port", "0", *self._where]
        self._process = subprocess.Popen(["bash", "-c", script, "bash", *command_line(*words)], env=self._own)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._process.kill()
        self._process.wait()

    def answers(self) -> bool:
        asking = command_line("submit", "hello", "--deadline", "10", *self._where)
        done = subprocess.run(asking, env=self._own, capture_output=True, text=True, timeout=60, check=False)
        return (done.returncode, done.stdout) == (0, "hello\n")

    def stop(self) -> int:
        self._process.send_signal(signal.SIGINT)
        return self._process.wait(60)
