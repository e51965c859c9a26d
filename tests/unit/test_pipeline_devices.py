"""Sharing devices out among replicas."""

from __future__ import annotations

import pytest

from omnibus.pipeline.devices import replica_devices, split_devices_for_replicas, visible_devices_env
from omnibus.pipeline.spec import StageSpec

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("devices", "replicas", "tp_size", "expected"),
    [
        ("0", 1, 1, ["0"]),
        ("0, 1,2", 1, 2, ["0, 1,2"]),
        ("", 1, 1, [""]),
        ("1,2,3,4", 2, 2, ["1,2", "3,4"]),
        ("4, 7", 2, 1, ["4", "7"]),
        ("0,1", 4, 2, ["0,1", "2,3", "4,5", "6,7"]),
        ("1,0", 2, 2, ["1,0", "3,2"]),
        ("0", 3, 1, ["0", "1", "2"]),
        ("GPU-aa,GPU-bb", 2, 1, ["GPU-aa", "GPU-bb"]),
        (None, 3, 2, [None, None, None]),
        (None, 1, 1, [None]),
    ],
)
def test_devices_are_shared_out_when_they_fit(
    devices: str | None, replicas: int, tp_size: int, expected: list[str | None]
) -> None:
    assert split_devices_for_replicas(devices, replicas, tp_size, 0) == expected


@pytest.mark.parametrize(
    ("devices", "replicas", "tp_size", "message"),
    [
        ("0,1,2", 2, 2, "3 devices for 2 replicas of 2; give 4"),
        ("0,1,2", 2, 1, "3 devices"),
        ("0", 2, 2, "1 devices"),
        ("2,3", 4, 2, r"in \[0, 2\)"),
        ("1", 2, 1, r"in \[0, 1\)"),
        ("-1,0", 4, 2, r"in \[0, 2\)"),
        ("a,b", 4, 2, r"in \[0, 2\)"),
        ("0,0", 4, 2, "repeated"),
        ("0,0", 2, 1, "repeated"),
        ("", 2, 1, "empty"),
        ("0,,1", 3, 1, "empty"),
        ("0", 0, 1, "start at 1"),
        ("0", 1, 0, "start at 1"),
    ],
)
def test_value_error_names_the_stage_when_devices_do_not_fit(
    devices: str, replicas: int, tp_size: int, message: str
) -> None:
    with pytest.raises(ValueError, match=f"stage 7: .*{message}"):
        split_devices_for_replicas(devices, replicas, tp_size, 7)


def test_replicas_are_not_narrowed_when_the_stage_names_no_devices() -> None:
    stage = StageSpec(stage_id=0, name="s", engine="sim", num_replicas=2)
    assert replica_devices(stage) == ["", ""]
    assert replica_devices(stage, 3) == ["", "", ""]


def test_a_replica_gets_tensor_parallel_size_devices_when_the_engine_spans_several() -> None:
    stage = StageSpec(
        stage_id=0, name="s", engine="vllm", devices="0,1", num_replicas=2, engine_args={"tensor_parallel_size": 2}
    )
    assert replica_devices(stage) == ["0,1", "2,3"]
    assert replica_devices(stage, 1) == ["0,1"]


def test_environment_narrows_every_vendor_when_devices_are_given() -> None:
    assert set(visible_devices_env("2, 3").values()) == {"2,3"}
    assert visible_devices_env("2")["CUDA_VISIBLE_DEVICES"] == "2"
    assert visible_devices_env("") == {}
