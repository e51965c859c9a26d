"""`omnibus trace` and `omnibus collect-env`."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.support.served import omnibus, write_pipeline
from tools.serving import Serving, serving

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("operating")
    flags = ("--port", "0", "--nats-port", "0")
    with serving(str(write_pipeline(folder)), *flags, state_dir=folder / "state") as running:
        yield running


def submit(served: Serving, request_id: str, *words: str) -> None:
    done = omnibus("submit", "a red circle", "--rid", request_id, *words, nats=served.nats_url, timeout=60.0)
    assert done.returncode == 0, done.stderr


def test_trace_shows_every_stage_in_the_order_of_the_record_when_the_request_is_done(served: Serving) -> None:
    submit(served, "drawn", "-m", "image", "-o", str(served.log.parent / "out"))
    found = json.loads(omnibus("trace", "drawn", "--json", nats=served.nats_url).stdout)
    assert (found["request_id"], found["pipeline"], found["state"]) == ("drawn", "simple", "done")
    spans = [(span["stage"], span["what"]) for span in found["spans"]]
    assert spans == [("writer", "waited"), ("writer", "ran"), ("painter", "waited"), ("painter", "ran")]
    ends = [0.0, *(span["end"] for span in found["spans"])]
    assert all(
        span["end"] >= span["start"] >= before - 0.05 for span, before in zip(found["spans"], ends, strict=False)
    )

    lines = omnibus("trace", "drawn", nats=served.nats_url).stdout.splitlines()
    assert lines[0].startswith("request drawn of simple: done, ")
    ran = [line for line in lines if " ran " in line]
    assert [line.split()[0] for line in ran] == ["writer", "painter"]
    assert all("#" in line for line in ran)
    assert ran[0].index("#") <= ran[1].index("#")


def test_trace_exits_with_2_when_no_record_has_the_id(served: Serving) -> None:
    done = omnibus("trace", "nobody", nats=served.nats_url)
    assert done.returncode == 2
    assert "nobody" in done.stderr


def test_collect_env_tells_versions_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNIBUS_API_KEYS", "sesame")
    done = omnibus("collect-env", "--json", nats="nats://user:hidden@127.0.0.1:1,nats://other:hidden@127.0.0.1:2")
    facts = json.loads(done.stdout)
    assert facts["versions"]["omnibus"]
    assert facts["nats-server"].startswith("nats-server: v2.")
    assert facts["settings"]["OMNIBUS_NATS_URL"] == "nats://127.0.0.1:1,nats://127.0.0.1:2"
    assert "hidden" not in done.stdout
    assert "sesame" not in done.stdout

    plain = omnibus("collect-env", nats="nats://127.0.0.1:1").stdout
    assert "versions" in plain
