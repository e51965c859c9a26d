"""How the replicas of a stage come up: layouts, plans, device locks, environment, children."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from omnibus.pipeline.devices import launcher_devices
from omnibus.pipeline.spec import EdgeSpec, PayloadRule, PipelineSpec, StageSpec
from omnibus.workers.initialisation import (
    LaunchMode,
    acquire_device_locks,
    compute_replica_layout,
    extract_stage_metadata,
    get_stage_devices_per_replica,
    get_stage_tp_size,
    plan_stages,
    release_device_locks,
    setup_stage_devices,
    split_devices_for_replicas,
    stage_runtime_env,
    terminate_alive_proc,
)
from omnibus.workers.initialisation.environment import engine_environment
from tests.support.stage_processes import stage_processes

pytestmark = pytest.mark.unit

SLEEPER = "import time; print('ready', flush=True); time.sleep(60)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEPER


def stage(
    stage_id: int = 0, engine: str = "vllm", *, devices: str = "", num_replicas: int = 1, **args: object
) -> StageSpec:
    return StageSpec(
        stage_id=stage_id, name=f"s{stage_id}", engine=engine, devices=devices, num_replicas=num_replicas, engine_args=args,
    )  # fmt: skip


# Layout


def test_split_devices_has_the_three_known_forms_under_its_known_name() -> None:
    """parity: split_devices_for_replicas; its edge cases are in test_pipeline_devices."""
    assert split_devices_for_replicas("1,2,3,4", 2, 2, 0) == ["1,2", "3,4"]
    assert split_devices_for_replicas("0,1", 4, 2, 0) == ["0,1", "2,3", "4,5", "6,7"]
    with pytest.raises(ValueError, match="stage 3"):
        split_devices_for_replicas("0,1,2", 2, 2, 3)


def test_tp_size_is_one_when_absent_or_null() -> None:
    """parity: get_stage_tp_size."""
    sizes = [stage(), stage(tensor_parallel_size=None), stage(tensor_parallel_size=4)]
    assert [get_stage_tp_size(each) for each in sizes] == [1, 1, 4]


@pytest.mark.parametrize(
    ("one", "devices"),
    [
        (stage(), 1),
        (stage(tensor_parallel_size=2), 2),
        (stage(tensor_parallel_size=2, pipeline_parallel_size=3), 6),
        (stage(tensor_parallel_size=2, data_parallel_size=4), 8),
        (stage(tensor_parallel_size=2, data_parallel_size=4, data_parallel_size_local=1), 2),
        (stage(tensor_parallel_size=2, data_parallel_size=4, data_parallel_size_local=None), 8),
        (stage(tensor_parallel_size=None, pipeline_parallel_size=None, data_parallel_size=None), 1),
        (stage(engine="diffusers", parallel_config=None), 1),
        (stage(engine="diffusers", parallel_config={"world_size": None}), 1),
        (stage(engine="diffusers"), 1),
        (stage(engine="diffusers", tensor_parallel_size=4), 1),
        (stage(engine="diffusers", parallel_config={"world_size": 4}), 4),
        (stage(engine="diffusers", parallel_config={}), 1),
    ],
)
def test_devices_per_replica_is_what_its_engine_spans(one: StageSpec, devices: int) -> None:
    """parity: get_stage_devices_per_replica."""
    assert get_stage_devices_per_replica(one) == devices


def test_layout_maps_devices_of_stages_with_several_replicas_only() -> None:
    """parity: compute_replica_layout."""
    stages = [stage(0, devices="0"), stage(1, devices="1,2", num_replicas=2), stage(2, num_replicas=2)]
    counts, devices = compute_replica_layout(stages)
    assert counts == [1, 2, 2]
    assert devices == {1: ["1", "2"], 2: ["", ""]}


@pytest.mark.parametrize(("allow_zero", "counts"), [(False, [1, 1]), (True, [0, 1])])
def test_stage_without_replicas_has_one_unless_zero_is_allowed(allow_zero: bool, counts: list[int]) -> None:
    stages = [stage(0, devices="0,1", num_replicas=0), stage(1)]
    assert compute_replica_layout(stages, allow_zero=allow_zero).replicas_per_stage == counts


def test_layout_raises_when_devices_cannot_be_shared_out() -> None:
    with pytest.raises(ValueError, match="stage 0: 3 devices for 2 replicas of 1"):
        compute_replica_layout([stage(0, devices="0,1,2", num_replicas=2)])


# Devices as the launcher sees them


@pytest.mark.parametrize(
    ("devices", "environ", "seen"),
    [
        ("0, 1", {}, "0,1"),
        ("", {"CUDA_VISIBLE_DEVICES": "4"}, ""),
        ("0,1", {"CUDA_VISIBLE_DEVICES": "4, 5"}, "4,5"),
        ("1", {"CUDA_VISIBLE_DEVICES": "GPU-aa,GPU-bb"}, "GPU-bb"),
        ("GPU-bb", {"CUDA_VISIBLE_DEVICES": "GPU-aa,GPU-bb"}, "GPU-bb"),
        ("1", {"ASCEND_RT_VISIBLE_DEVICES": "6,7"}, "7"),
    ],
)
def test_device_counts_in_what_the_launcher_sees(devices: str, environ: dict[str, str], seen: str) -> None:
    assert launcher_devices(devices, environ, 0) == seen


@pytest.mark.parametrize("visible", ["", "4,5"])
def test_error_names_stage_and_variable_when_a_device_is_not_there(visible: str) -> None:
    with pytest.raises(ValueError, match=f"stage 3: there is no device 2: CUDA_VISIBLE_DEVICES is '{visible}'"):
        launcher_devices("2", {"CUDA_VISIBLE_DEVICES": visible}, 3)


# Plans

SPEC = PipelineSpec(
    name="plan",
    stages=(
        StageSpec(stage_id=0, name="ar", engine="vllm", devices="0,1", num_replicas=2, env={"A": "1"}),
        StageSpec(
            stage_id=1, name="dit", engine="diffusers", devices="0", num_replicas=2, input_sources=(0,),
            final_output=True, final_output_type="image", input_processor="m:f", prompt_expand="m:g",
            default_sampling_params={"steps": 4},
        ),
    ),
    edges=(EdgeSpec(source=0, target=1, payload=PayloadRule.OBJECT),),
)  # fmt: skip


def test_metadata_says_of_a_stage_what_others_need() -> None:
    """parity: StageMetadata, extract_stage_metadata."""
    metadata = extract_stage_metadata(SPEC.stages[1])
    assert (metadata.stage_id, metadata.model_stage, metadata.stage_type) == (1, "dit", "diffusion")
    assert (metadata.engine_input_source, metadata.final_output, metadata.final_output_type) == ((0,), True, "image")
    assert (metadata.default_sampling_params, metadata.custom_process_input_func) == ({"steps": 4}, "m:f")
    assert metadata.prompt_expand_func == "m:g"
    assert metadata.devices_per_replica == 1
    assert extract_stage_metadata(SPEC.stages[0]).stage_type == "llm"


def test_plan_has_devices_environment_and_connectors_of_each_replica() -> None:
    """parity: LogicalStageInitPlan, ReplicaInitPlan, connector spec a stage."""
    ar, dit = plan_stages(SPEC, environ={"CUDA_VISIBLE_DEVICES": "4,5,6,7"})
    assert [(plan.stage_idx, plan.stage_id) for plan in (ar, dit)] == [(0, 0), (1, 1)]
    assert [(replica.replica_id, replica.num_replicas, replica.devices) for replica in ar.replicas] == [
        (0, 2, "4"), (1, 2, "5"),
    ]  # fmt: skip
    assert ar.replicas[1].env == {
        "A": "1", "CUDA_VISIBLE_DEVICES": "5", "HIP_VISIBLE_DEVICES": "5", "ASCEND_RT_VISIBLE_DEVICES": "5",
    }  # fmt: skip
    assert ar.replicas[1].title == "stage 0 'ar', replica 1 of 2 on devices 5"
    assert [edge.payload for edge in ar.replicas[0].stage_connector_spec.outputs] == ["object"]
    assert ar.replicas[0].stage_connector_spec.outputs == dit.replicas[0].stage_connector_spec.inputs


def test_stage_is_left_to_others_when_it_is_not_started_here() -> None:
    """parity: --omni-dp-size-local is local to each invocation."""
    ar, dit = plan_stages(SPEC, {1}, replicas=1, environ={})
    assert [replica.launch_mode for replica in ar.replicas] == [LaunchMode.REMOTE] * 2
    assert ar.local == ()
    assert [replica.devices for replica in dit.local] == ["0"]


def test_replicas_are_quiet_unless_operator_or_stage_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setenv("PYTHONWARNINGS", "default")
    told = PipelineSpec(name="p", stages=(StageSpec(stage_id=0, name="s", engine="sim", env={"TQDM_DISABLE": "0"}),))
    for spec, bars in ((SPEC, "1"), (told, "0")):
        (first, *_) = stage_processes(spec, spec.stages[0], 1, broker={})
        assert (first.env["TQDM_DISABLE"], "PYTHONWARNINGS" in first.env) == (bars, False)


# Locks between processes


async def test_device_is_locked_once_when_two_want_it(tmp_path: Path) -> None:
    """parity: acquire_device_locks, release_device_locks."""
    first = await acquire_device_locks("1,0", timeout=1, holder="stage 'a' replica r1", folder=tmp_path)
    assert [lock.device for lock in first] == ["0", "1"]
    others = await acquire_device_locks("2,GPU-a/b", timeout=1, folder=tmp_path)
    with pytest.raises(TimeoutError, match=rf"device 1 .* by stage 'a' replica r1 \(pid {os.getpid()}\)"):
        await acquire_device_locks("1,2", timeout=0.1, folder=tmp_path)
    waiting = asyncio.create_task(acquire_device_locks("0", timeout=10, folder=tmp_path))
    await asyncio.sleep(0)
    assert not waiting.done()
    release_device_locks(first)
    release_device_locks([*await waiting, *others, *first])


async def test_no_lock_is_kept_when_waiting_for_another_is_cancelled(tmp_path: Path) -> None:
    held = await acquire_device_locks("1", timeout=1, folder=tmp_path)
    waiting = asyncio.create_task(acquire_device_locks("0,1", timeout=10, folder=tmp_path))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    release_device_locks([*await acquire_device_locks("0", timeout=0.1, folder=tmp_path), *held])


def test_lock_is_gone_when_its_process_is_killed(tmp_path: Path) -> None:
    code = f"""
import asyncio, pathlib, time
from omnibus.workers.initialisation import acquire_device_locks
locks = asyncio.run(acquire_device_locks("0", timeout=1, folder=pathlib.Path({str(tmp_path)!r})))
print("held", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(TimeoutError, match=f"pid {holder.pid}"):
            asyncio.run(acquire_device_locks("0", timeout=0.1, folder=tmp_path))
        holder.kill()
        release_device_locks(asyncio.run(acquire_device_locks("0", timeout=5, folder=tmp_path)))


def test_nothing_is_locked_when_a_stage_names_no_devices(tmp_path: Path) -> None:
    assert asyncio.run(acquire_device_locks(" ", timeout=0, folder=tmp_path)) == []
    assert not list(tmp_path.iterdir())


# Environment of an engine that starts inside this process


def test_environment_is_as_before_when_a_start_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """parity: stage_runtime_env, setup_stage_devices: visibility a replica, restored after."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    monkeypatch.delenv("HIP_VISIBLE_DEVICES", raising=False)
    before = dict(os.environ)
    with stage_runtime_env({"OMNIBUS_TEST": "1"}), setup_stage_devices("2"):
        seen = [os.environ[name] for name in ("OMNIBUS_TEST", "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")]
    assert seen == ["1", "2", "2"]
    assert dict(os.environ) == before
    with setup_stage_devices(""):
        assert dict(os.environ) == before


async def test_starts_take_turns_when_they_want_different_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    inside: list[str] = []

    async def start(devices: str) -> str:
        async with engine_environment({}, devices):
            inside.append(devices)
            assert len(inside) == 1
            await asyncio.sleep(0.03)
            inside.remove(devices)
            return os.environ["CUDA_VISIBLE_DEVICES"]

    assert await asyncio.gather(*(start(devices) for devices in "0123")) == list("0123")
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


# Children


@pytest.mark.parametrize(("code", "returncode"), [(SLEEPER, -signal.SIGTERM), (STUBBORN, -signal.SIGKILL)])
def test_child_is_ended_when_terminated(code: str, returncode: int) -> None:
    """parity: terminate_alive_proc."""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert terminate_alive_proc(child, 0.5) == returncode
        assert terminate_alive_proc(child, 0.5) == returncode


def test_child_dies_with_its_parent_when_it_set_the_death_signal() -> None:
    """parity: set_death_signal; the supervisor's test covers kill -9 and grandchildren."""
    child = "from omnibus.workers.initialisation import set_death_signal as s; s(); print('set', flush=True); input()"
    parent = (
        f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}], stdin=subprocess.PIPE).wait()"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"set\n"
        process.kill()
        assert process.stdout.read() == b""  # the end of the pipe: its other holder is gone


def test_death_signal_is_the_given_one() -> None:
    code = (
        "import ctypes, signal; from omnibus.workers.initialisation import set_death_signal;"
        "set_death_signal(signal.SIGTERM); got = ctypes.c_int();"
        "ctypes.CDLL(None).prctl(2, ctypes.byref(got), 0, 0, 0); print(got.value)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == signal.SIGTERM
