"""The command line: starts fast, imports a command only when it is needed, and turns errors into exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from omnibus import cli
from omnibus.cli.submit import failure_of
from omnibus.client.request_events import Result
from omnibus.errors import BrokerUnavailable, InvalidName, OmnibusError, PipelineError
from omnibus.pipeline.loading import load_pipeline
from omnibus.requests.state import RequestState
from omnibus.wire.failure import Failure

pytestmark = pytest.mark.unit

GOOD = "name: tiny\nstages:\n- {stage_id: 0, name: only, engine: sim, final_output: true, final_output_type: text}\n"


def _run_help(*args: str) -> tuple[str, set[str]]:
    """Output, and the modules that were imported, of `omnibus ARGS --help` in a process of its own."""
    call = f"cli.main({[*args, '--help']!r}, standalone_mode=False)"
    program = f"import sys; from omnibus.cli import cli; {call}; print('|', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    output, _, modules = done.stdout.rpartition("|")
    return output, set(modules.split())


def test_help_imports_no_command_when_asked_for() -> None:
    output, modules = _run_help()
    assert all(f"  {name} " in output for name in cli.COMMANDS)
    assert "_OMNIBUS_COMPLETE=bash_source" in output
    ours = {module for module in modules if module.startswith("omnibus")}
    assert ours == {"omnibus", "omnibus.cli", "omnibus.cli.streams"}
    assert not modules & {"nats", "pydantic", "numpy", "yaml", "msgspec", "asyncio"}


def test_settings_and_nats_stay_away_when_a_command_shows_its_help() -> None:
    output, modules = _run_help("pipeline", "validate")
    assert "Check pipelines" in output
    assert not modules & {"nats", "omnibus.settings", "pydantic", "numpy"}


def test_loading_a_pipeline_imports_neither_numpy_nor_torch() -> None:
    program = (
        "import sys, omnibus.pipeline.loading, omnibus.pipeline.routing, omnibus.pipeline.drawing; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    assert not set(done.stdout.split()) & {"numpy", "torch", "nats", "pydantic"}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (PipelineError("wrong", file="a.yaml", line=3, field="name"), 2),
        (InvalidName(), 2),
        (BrokerUnavailable("cannot reach NATS"), 1),
        (OmnibusError("odd"), 1),
        (ExceptionGroup("tasks", [ExceptionGroup("tasks", [PipelineError("wrong")])]), 2),
    ],
)
def test_error_is_one_line_and_a_status_when_a_command_raises(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, status: int
) -> None:
    assert _status_when_a_command_raises(monkeypatch, error) == status
    while isinstance(error, ExceptionGroup):
        (error,) = error.exceptions
    assert capsys.readouterr().err == f"omnibus: {error}\n"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_status_is_130_and_nothing_is_printed_when_interrupted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException
) -> None:
    assert _status_when_a_command_raises(monkeypatch, error) == 130
    assert capsys.readouterr().err.strip() == ""


def test_traceback_is_kept_when_the_error_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        _status_when_a_command_raises(monkeypatch, ZeroDivisionError())


@pytest.mark.parametrize(
    ("args", "status"), [(["nope"], 2), (["version", "--nope"], 2), (["version"], 0), (["--version"], 0), (["-h"], 0)]
)
def test_status_follows_usage_when_the_command_line_is_parsed(args: list[str], status: int) -> None:
    assert _status(args) == status


@pytest.mark.parametrize(
    ("args", "meant"),
    [
        (["serv"], "serve"),
        (["statsu"], "status"),
        (["pipeline", "lst"], "list"),
        (["dead", "retyr"], "retry"),
        (["version", "--hlp"], "--help"),
    ],
)
def test_what_was_meant_is_suggested_when_a_name_is_misspelt(
    capsys: pytest.CaptureFixture[str], args: list[str], meant: str
) -> None:
    assert _status(args) == 2
    said = capsys.readouterr().err
    assert "Did you mean" in said
    assert f"'{meant}'" in said


@pytest.mark.parametrize("option", ["--credentials", "--nats-ca", "--nats-cert", "--nats-key"])
@pytest.mark.parametrize("command", [["submit", "hello"], ["status"], ["worker", "--stage", "0"]])
def test_file_of_an_option_is_asked_for_when_it_does_not_exist(
    capsys: pytest.CaptureFixture[str], command: list[str], option: str
) -> None:
    assert _status([*command, option, "nofile"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"Invalid value for '{option}': Path 'nofile' does not exist" in said
    assert ("Copy nats.credentials from the state directory" in said) == (option == "--credentials")


def test_commands_are_completed_when_the_shell_asks() -> None:
    asking = {**os.environ, "_OMNIBUS_COMPLETE": "bash_complete", "COMP_WORDS": "omnibus s", "COMP_CWORD": "1"}
    program = "from omnibus.cli import main; main([])"
    done = subprocess.run(
        [sys.executable, "-c", program], env=asking, capture_output=True, text=True, check=False, timeout=30
    )
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == {"serve", "submit", "status"}


def test_validate_reports_each_file_when_some_are_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("good.yaml").write_text(GOOD)
    Path("bad.yaml").write_text(GOOD.replace("engine: sim", "engine: sims"))

    assert _status(["pipeline", "validate", "good.yaml", "bad.yaml"]) == 2

    out, err = capsys.readouterr()
    assert out == "good.yaml: ok, tiny: text\n"
    assert err.startswith("bad.yaml:3: stages[0].engine: 'sims' is not one of")
    assert _status(["pipeline", "validate", "good.yaml"]) == 0


@pytest.mark.parametrize(
    "data", [b"\x89PNG\r\n\x1a\n\x00", b"name: a\x00b", "name: a".encode("utf-16")], ids=["png", "nul", "utf-16"]
)
def test_validate_says_that_a_file_is_binary_when_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes
) -> None:
    file = tmp_path / "photo.png"
    file.write_bytes(data)
    assert _status(["pipeline", "validate", str(file)]) == 2
    assert capsys.readouterr().err == f"{file}: not YAML: a binary file, or text that is not UTF-8\n"


@pytest.mark.parametrize(
    "words",
    [["pipeline", "deploy"], ["nats", "plan"], ["nats", "apply"], ["submit", "hi", "-p"], ["status", "-p"], ["doctor", "-p"],
     ["worker", "--stage", "0", "-p"], ["restart", "--all", "-p"], ["chat", "-p"]],
    ids=" ".join,
)  # fmt: skip
def test_file_is_read_before_anything_is_connected_to_when_a_command_names_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(GOOD.replace("engine: sim", "engine: sims"))
    assert _status([*words, str(file), "--nats", "nats://127.0.0.1:1"]) == 2
    error = capsys.readouterr().err
    assert "'sims' is not one of" in error
    assert "NATS" not in error


def test_serve_names_the_command_that_is_meant_when_it_is_to_run_headless(capsys: pytest.CaptureFixture[str]) -> None:
    assert _status(["serve", "omni-tiny", "--headless"]) == 2
    assert "`omnibus worker --stage STAGE --nats URL`" in capsys.readouterr().err
    assert "--headless" not in _run_help("serve")[0]


def test_show_draws_the_graph_when_the_file_is_good(tmp_path: Path) -> None:
    file = tmp_path / "good.yaml"
    file.write_text(GOOD)
    result = CliRunner().invoke(cli.cli, ["pipeline", "show", str(file)])
    assert "╰──▶ 0 only   sim · 1 replica × 1 slot   ⇒ text" in result.output


def _status(args: list[str]) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main(args)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def _status_when_a_command_raises(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    @click.command()
    def command() -> None:
        raise error

    monkeypatch.setattr("omnibus.cli.version.command", command)
    return _status(["version"])


@pytest.mark.parametrize(
    ("failure", "shown"),
    [
        (
            Failure(code="engine_rejected", message="no shape", stage_id=2),
            "stage 'talker': no shape (engine_rejected, ",
        ),
        (
            Failure(code="engine_error", message="stage 'talker': no", stage_id=2),
            "failed: stage 'talker': no (engine_er",
        ),
        (Failure(code="overloaded", message="too many"), "failed: too many (overloaded, request r)"),
        (Failure(code="engine_error", message="broke", stage_id=77), "stage '77': broke"),
    ],
)
def test_failure_is_shown_with_the_stage_that_it_happened_in(failure: Failure, shown: str) -> None:
    result = Result("r", "omni-tiny", RequestState.FAILED, 0.0, 1.0, 1, (), (), failure)
    assert shown in failure_of(result, load_pipeline("omni-tiny"))
    assert failure_of(result, load_pipeline("omni-tiny")).count("stage") == (failure.stage_id is not None)
