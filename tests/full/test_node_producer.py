"""The Node client of examples/ on a real stack: a producer that shares nothing with us but the wire."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.node import ask_from_node, install_client
from tests.support.served import omnibus, write_pipeline
from tools.serving import Serving, serving

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A served pipeline without a front door."""
    folder = tmp_path_factory.mktemp("node")
    with serving(
        str(write_pipeline(folder)), "--no-frontdoor", "--nats-port", "0", state_dir=folder / "state"
    ) as running:
        yield running


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed example."""
    return install_client(tmp_path_factory.mktemp("client"))


def test_text_image_and_audio_arrive_when_node_asks(served: Serving, client: Path, tmp_path: Path) -> None:
    done = _submit(client, served, "ein Bild für Zoë 🎨", "--out", str(tmp_path))

    assert (done.returncode, done.stdout) == (0, "ein Bild für Zoë 🎨\n")
    assert (tmp_path / "image-1-0.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "audio-2-0.wav").read_bytes().startswith(b"RIFF")


def test_large_output_is_read_from_the_object_store_when_node_asks(served: Serving, client: Path) -> None:
    prompt = " ".join(["ever" * 200] * 100)  # beyond what a record keeps inside

    done = _submit(client, served, prompt, "--modalities", "text")
    assert (done.returncode, done.stderr, done.stdout) == (0, "", f"{prompt}\n")


def test_request_of_node_is_known_by_its_id_when_it_has_ended(served: Serving, client: Path) -> None:
    assert _submit(client, served, "hello", "--modalities", "text", "--rid", "from-node").returncode == 0

    assert '"state": "done"' in omnibus("status", "from-node", "--json", nats=served.nats_url).stdout
    again = _submit(client, served, "hello", "--modalities", "text", "--rid", "from-node")
    assert (again.returncode, again.stdout) == (0, "hello\n"), "the same id and request: the same answer, once more"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--modalities", "video"], "unsupported_modality"),
        (["--rid", "reject-from-node"], "engine_rejected"),
        (["--pipeline", "nothing"], "is pipeline nothing deployed?"),
    ],
)
def test_node_says_why_when_its_request_cannot_be_served(
    served: Serving, client: Path, words: list[str], says: str
) -> None:
    done = _submit(client, served, "hello", *words)
    assert done.returncode == 1
    assert says in done.stderr


def _submit(client: Path, served: Serving, *words: str) -> subprocess.CompletedProcess[str]:
    return ask_from_node(client, *words, nats=served.nats_url, pipeline="simple")
