"""Where a stage's checkpoint lies."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import omnibus
from omnibus.errors import CheckpointMissing
from omnibus.workers.engines.checkpoints import loading, require_file, resolve_model

pytestmark = pytest.mark.unit


def test_path_when_it_exists(tmp_path: Path) -> None:
    assert resolve_model(str(tmp_path)) == str(tmp_path)


def test_folder_of_a_package_when_it_is_named() -> None:
    folder = Path(omnibus.__file__).parent

    assert resolve_model("package:omnibus/workers") == str(folder / "workers")
    assert resolve_model("package:omnibus.workers") == str(folder / "workers")


def test_name_comes_back_when_only_the_hub_can_have_it() -> None:
    assert resolve_model("organisation/model-1.5", "main") == "organisation/model-1.5"


@pytest.mark.parametrize(
    ("model", "revision"),
    [
        ("", None),
        ("/no/such/folder", None),
        ("./nothing/here", None),
        ("../nothing", None),
        ("a/b/c", None),
        ("package:omnibus/no/such/thing", None),
        ("package:no_such_package/weights", None),
        ("package:", None),
        ("package:omnibus", "main"),
    ],
)
def test_checkpoint_missing_when_there_is_none(model: str, revision: str | None) -> None:
    with pytest.raises(CheckpointMissing):
        resolve_model(model, revision)


def test_checkpoint_missing_when_a_folder_lacks_its_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointMissing, match=r"config\.json"):
        require_file(str(tmp_path), None, ("config.json",))


def test_checkpoint_missing_when_the_hub_is_out_of_reach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))

    with pytest.raises(CheckpointMissing, match="allow access to the hub"):
        require_file("organisation/model", "main", ("config.json",))


def test_checkpoint_missing_when_a_loader_finds_files_missing() -> None:
    with pytest.raises(CheckpointMissing, match="no weights"), loading("/a/folder"):
        raise OSError("no weights\nand a long explanation")


def test_hub_logs_once_when_a_process_has_its_logs_in_order() -> None:
    pytest.importorskip("huggingface_hub")
    code = (
        "import contextlib, logging\n"
        "from omnibus.errors import CheckpointMissing\n"
        "from omnibus.observability.logging import configure_logging\n"
        "from omnibus.workers.engines.checkpoints import require_file\n"
        "configure_logging('info', 'json')\n"
        "with contextlib.suppress(CheckpointMissing):\n"
        "    require_file('nobody/nothing', None, ('config.json',))\n"
        "logging.getLogger('huggingface_hub.utils._http').warning('no answer')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=True,
        timeout=60,
    )  # fmt: skip
    assert done.stderr.count("no answer") == 1, done.stderr
