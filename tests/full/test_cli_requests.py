"""Requests on the command line: to which pipeline they go, where they are, and what they ask for."""

from __future__ import annotations

import json
import re
import wave
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.support.served import SIM_PIPELINE, omnibus, start, write_pipeline
from tests.support.waiting import eventually
from tools.serving import Serving, serving

pytestmark = pytest.mark.integration

NOT_SERVED = SIM_PIPELINE.replace("name: simple", "name: later")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A broker on which `simple` is served, and `later` only deployed."""
    folder = tmp_path_factory.mktemp("requests")
    with serving(str(write_pipeline(folder)), "--port", "0", "--nats-port", "0", state_dir=folder / "state") as running:
        later = write_pipeline(folder / "later", NOT_SERVED)
        assert omnibus("pipeline", "deploy", str(later), nats=running.nats_url).returncode == 0
        yield running


def _status(served: Serving, *words: str) -> str:
    return omnibus("status", *words, nats=served.nats_url).stdout


def _trace(served: Serving, *words: str) -> str:
    return omnibus("trace", *words, nats=served.nats_url).stdout


def test_request_goes_to_the_pipeline_that_is_served_when_none_is_named(served: Serving, tmp_path: Path) -> None:
    done = omnibus("submit", "hello", "--json", "-o", str(tmp_path), nats=served.nats_url)
    assert done.returncode == 0, done.stderr
    assert "request " in _status(served, json.loads(done.stdout)["request_id"])


@pytest.mark.parametrize("words", [("show", "nobody"), ("retry", "nobody"), ("drop", "nobody", "--yes")], ids=" ".join)
def test_dead_letter_is_looked_for_in_the_pipeline_that_is_served_when_none_is_named(
    served: Serving, words: tuple[str, ...]
) -> None:
    done = omnibus("dead", *words, nats=served.nats_url)
    assert (done.returncode, "no dead letter 'nobody' in pipeline 'simple'" in done.stderr) == (2, True)


def test_choice_is_asked_for_when_several_are_served(served: Serving, tmp_path: Path) -> None:
    pipeline = write_pipeline(tmp_path, SIM_PIPELINE.replace("name: simple", "name: other"))
    with serving(
        str(pipeline), "--no-frontdoor", "--nats", served.nats_url, state_dir=tmp_path / "state"
    ):  # fmt: skip
        done = omnibus("submit", "hello", nats=served.nats_url)
        asked = [
            omnibus("dead", *words, nats=served.nats_url) for words in (["show", "any"], ["retry", "any"], ["list"])
        ]
    assert {one.returncode for one in (done, *asked)} == {2}
    for one in (done, *asked):
        assert "so name one (commands: --pipeline NAME): other, simple" in one.stderr
    omnibus("pipeline", "delete", "other", nats=served.nats_url)


def test_all_pipelines_are_shown_when_status_names_none(served: Serving) -> None:
    table = _status(served)
    assert re.search(r"^0 writer +0 +0 +r0 +up", table, re.MULTILINE)
    assert "later: deployed and not served" in table
    assert table.index("simple") < table.index("later"), "those that are served come first"
    objects = [json.loads(line) for line in _status(served, "--json").splitlines()]
    assert {one["pipeline"] for one in objects} == {"simple", "later"}
    assert "later" not in _status(served, "--pipeline", "simple")


async def test_stage_and_replica_are_named_when_a_request_is_running(served: Serving, tmp_path: Path) -> None:
    words = ("submit", "hello", "--request-id", "hang-9", "--deadline", "600")
    asking = start(*words, nats=served.nats_url, log=tmp_path / "log")
    await eventually(lambda: "running at stage 0 writer, replica r" in _status(served, "hang-9"), 30.0)
    text = _status(served, "hang-9")
    assert re.search(r"accepted \d\d:\d\d:\d\d, deadline \d\d:\d\d:\d\d, in \d+", text)
    assert re.search(r"^1 painter +not there yet", text, re.MULTILINE)
    assert re.search(r"^0 writer +0 +1 +r0", _status(served), re.MULTILINE), "a running task is not queued"
    assert re.search(r"^writer +running +\d\S+ +\d\S+ +=+$", _trace(served, "hang-9"), re.MULTILINE)
    (at,) = json.loads(_status(served, "hang-9", "--json"))["at"]
    assert (at["stage"], at["replica"]) == ("writer", "r0")
    assert omnibus("cancel", "hang-9", nats=served.nats_url).stdout == "hang-9: cancelled\n"
    assert asking.wait(30) == 3
    assert "request hang-9 of simple: cancelled" in _status(served, "hang-9")


async def test_stage_is_named_when_a_request_waits_for_replicas(served: Serving, tmp_path: Path) -> None:
    asking = start(
        "submit", "hello", "-p", "later", "--request-id", "early", nats=served.nats_url, log=tmp_path / "log"
    )
    await eventually(lambda: "waiting for stage 0 writer" in _status(served, "early"), 30.0)
    assert "1 task waits" in _status(served)
    await eventually(lambda: "waiting for a replica of writer (none starts)" in (tmp_path / "log").read_text(), 30.0)
    assert re.search(r"^writer +waiting +\d\S+ +\d\S+ +\.+$", _trace(served, "early"), re.MULTILINE)
    asking.terminate()
    asking.wait()


async def test_stage_that_is_missing_is_named_when_those_before_it_have_answered(tmp_path: Path) -> None:
    pipeline = str(write_pipeline(tmp_path, SIM_PIPELINE.replace("name: simple", "name: halved")))
    flags = ("--stages", "writer", "--port", "0", "--nats-port", "0")
    with serving(pipeline, *flags, state_dir=tmp_path / "state") as halved:
        words = ("submit", "hello", "--request-id", "half", "-m", "text,image", "-o", str(tmp_path))
        asking = start(*words, nats=halved.nats_url, log=tmp_path / "log")
        await eventually(
            lambda: "waiting for a replica of painter (none starts)" in (tmp_path / "log").read_text(), 30.0
        )
        assert "hello" in (tmp_path / "log").read_text()
        assert "writer" not in (tmp_path / "log").read_text(), "it is needed no more"
        lines = _trace(halved, "half").splitlines()[2:]
        assert [line.split()[:2] for line in lines] == [["writer", "waited"], ["writer", "ran"], ["painter", "waiting"]]
        async with httpx.AsyncClient() as http:
            spans = (await http.get(f"{halved.url}/v1/requests/half/trace")).json()["spans"]
        assert [(one["stage"], one["what"]) for one in spans] == [("writer", "waited"), ("writer", "ran")]
        assert omnibus("cancel", "half", nats=halved.nats_url).returncode == 0
        asking.wait()


async def test_attempts_are_counted_with_the_reason_when_a_stage_is_tried_again(
    served: Serving, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    asking = start("submit", "hello", "--request-id", "hang-twice", nats=served.nats_url, log=log)
    await eventually(lambda: "attempt 3" in log.read_text(), 60.0)
    assert omnibus("cancel", "hang-twice", nats=served.nats_url).returncode == 0
    assert asking.wait(30) == 3
    assert [line for line in log.read_text().splitlines() if "attempt" in line] == [
        f"stage 'writer': attempt {number} of 5; the one before failed: configured to fail" for number in (2, 3)
    ]


def test_pipeline_that_is_served_is_deleted_by_force_alone(tmp_path: Path) -> None:
    pipeline = str(write_pipeline(tmp_path, SIM_PIPELINE.replace("name: simple", "name: used")))
    with serving(pipeline, "--no-frontdoor", "--nats-port", "0", state_dir=tmp_path / "state") as used:
        refused = omnibus("pipeline", "delete", "used", "--yes", nats=used.nats_url)
        assert refused.returncode == 2
        assert "pipeline 'used' is served: 3 replicas are up" in refused.stderr
        assert omnibus("submit", "hello", "-m", "text", nats=used.nats_url).stdout == "hello\n"
        assert omnibus("pipeline", "delete", "used", "--yes", "--force", nats=used.nats_url).returncode == 0
        assert "is not deployed" in omnibus("submit", "hello", "-p", "used", nats=used.nats_url).stderr


async def test_log_says_so_when_a_worker_waits_for_its_pipeline(served: Serving, tmp_path: Path) -> None:
    worker = start("worker", "--stage", "0", "-p", "nothing", nats=served.nats_url, log=tmp_path / "log")
    await eventually(lambda: "pipeline.awaited" in (tmp_path / "log").read_text(), 30.0)
    worker.terminate()
    worker.wait()
    assert "pipeline 'nothing' is not deployed" in (tmp_path / "log").read_text()


def test_times_and_outputs_are_told_when_a_request_is_done(served: Serving, tmp_path: Path) -> None:
    omnibus("submit", "a red circle", "--request-id", "done-1", "-o", str(tmp_path), nats=served.nats_url)
    text = _status(served, "done-1")
    assert re.search(r"request done-1 of simple: done\naccepted \S+, done \S+, after \d", text)
    assert re.search(r"^2 speaker +done +\d\.\d s +\d\.\d s", text, re.MULTILINE)
    assert "text from writer: 'a red circle'" in text
    assert re.search(r"image from painter: 1 file of image/png, \d+ bytes", text)


def test_folder_that_cannot_be_written_is_refused_before_the_request_is_sent(served: Serving, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for number, out in enumerate((tmp_path / "file" / "out", Path("/proc/out"))):
        words = ["submit", "a red circle", "--out", str(out), "--request-id", f"unsaved-{number}"]
        done = omnibus(*words, nats=served.nats_url)
        assert (done.returncode, done.stdout) == (2, "")
        assert f"cannot be saved under {out}" in done.stderr
        assert "Traceback" not in done.stderr
        assert omnibus("status", f"unsaved-{number}", nats=served.nats_url).returncode == 2, "it was sent"
        assert omnibus(*words, "-m", "text", nats=served.nats_url).returncode == 0, "a text needs no folder"


def test_stage_that_failed_is_named_when_a_request_has_failed(served: Serving) -> None:
    omnibus("submit", "hello", "--request-id", "reject-9", nats=served.nats_url)
    text = _status(served, "reject-9")
    assert re.search(r"^0 writer +failed +- +- +r0", text, re.MULTILINE)
    assert re.search(r"^1 painter +not run", text, re.MULTILINE)
    assert "not there" not in text


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--param", "temperature=1"], "STAGE.NAME=VALUE"),
        (["--param", "nobody.temperature=1"], "nobody"),
        (["--param", "writer.x=[1"], "--param"),
        (["--size", "big"], "WIDTHxHEIGHT"),
        (["--size", "64x64", "-m", "text"], "size has no effect here"),
        (["--image", "/no/such/file.png"], "does not exist"),
        (["--audio", "/"], "is a directory"),
        (["--image", "/etc/hostname"], "/etc/hostname: not a picture"),
        (["--audio", "/etc/hostname"], "/etc/hostname: not a sound"),
    ],
)
def test_refusal_names_the_flag_when_it_can_have_no_effect(served: Serving, words: list[str], says: str) -> None:
    done = omnibus("submit", "hello", *words, nats=served.nats_url)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_parameters_and_files_reach_their_stages_when_flags_name_them(tmp_path: Path) -> None:
    (tmp_path / "told.py").write_text(
        "def say(stage_input, sampling):\n"
        "    parts = stage_input.request.messages[0].content\n"
        "    media = [f'{part.media_type} {len(part.data)}' for part in parts if hasattr(part, 'data')]\n"
        "    return '; '.join([parts[-1].text, *media, repr(sorted(sampling.items()))])\n"
    )
    Image.new("RGB", (1, 1)).save(tmp_path / "a.png")
    with wave.open(str(tmp_path / "b.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(1600))
    size, length = (tmp_path / "a.png").stat().st_size, (tmp_path / "b.wav").stat().st_size
    pipeline = write_pipeline(
        tmp_path,
        "name: told\nstages:\n- {stage_id: 0, name: only, engine: python, model: 'told:say', final_output: true, "
        "final_output_type: text}\n",
    )
    flags, variables = ("--no-frontdoor", "--nats-port", "0"), {"PYTHONPATH": str(tmp_path)}
    with serving(str(pipeline), *flags, state_dir=tmp_path / "state", env=variables) as running:
        params = ["--param", "only.warmth=0.7", "--param", "0.words=[a, b]", "--param", "only.text=x=y", "--seed", "3"]
        media = ["--image", str(tmp_path / "a.png"), "--audio", str(tmp_path / "b.wav")]
        done = omnibus("submit", "look", *params, *media, nats=running.nats_url)
    expected = "[('seed', 3), ('text', 'x=y'), ('warmth', 0.7), ('words', ['a', 'b'])]"
    assert done.stdout == f"look; image/png {size}; audio/wav {length}; {expected}\n", done.stderr
