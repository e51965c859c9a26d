"""The devices that each replica of a stage sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

from omnibus.pipeline.engines import engine_kind
from omnibus.pipeline.spec import StageSpec

VISIBILITY_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES")
"""Variables that CUDA, ROCm and Ascend runtimes read; each ignores the others'."""
Devices = TypeVar("Devices", str, None)


class ReplicaLayout(NamedTuple):
    """The number of replicas of each stage, and the devices of those of a stage with several."""

    replicas_per_stage: list[int]
    replica_devices_map: dict[int, list[str]]
    """Devices by the stage's index in the list; only stages with more than one replica."""


def get_stage_tp_size(stage: StageSpec) -> int:
    """Return the tensor parallel size of a stage: `tensor_parallel_size` of its engine arguments, 1 when absent or null."""
    return int(stage.engine_args.get("tensor_parallel_size") or 1)


def get_stage_devices_per_replica(stage: StageSpec) -> int:
    """Return the number of devices that one replica of a stage takes.

    Its engine says how they follow from its arguments. Raises ConfigError for an engine that is not installed.
    """
    return engine_kind(stage.engine).devices(stage.engine_args)


def compute_replica_layout(stages: Sequence[StageSpec], *, allow_zero: bool = False) -> ReplicaLayout:
    """Lay out the replicas of each stage and their devices; a stage with 0 replicas has one unless `allow_zero`.

    Zero is for stages that only workers elsewhere serve. Raises ValueError when devices cannot be shared out.
    """
    least = 0 if allow_zero else 1
    counts = [max(least, stage.num_replicas) for stage in stages]
    several = {index: replica_devices(stages[index], count) for index, count in enumerate(counts) if count > 1}
    return ReplicaLayout(counts, several)


def replica_devices(stage: StageSpec, num_replicas: int | None = None) -> list[str]:
    """Return the `devices` of each replica of a stage, by index.

    `num_replicas` overrides the stage's own number. A stage without devices narrows nothing: every entry is empty.
    Raises ValueError when the stage's devices cannot be shared out so.
    """
    count = stage.num_replicas if num_replicas is None else num_replicas
    if count == 0 or not stage.devices.strip():
        return [""] * count
    return split_devices_for_replicas(stage.devices, count, get_stage_devices_per_replica(stage), stage.stage_id)


def split_devices_for_replicas(devices: Devices, num_replicas: int, tp_size: int, stage_id: int) -> list[Devices]:
    """Share a stage's comma-separated devices out among its replicas.

    - One replica: `devices` unchanged. None: every replica sees what its launcher sees, and has None.
    - Pool, `num_replicas * tp_size` entries: consecutive slices; `"1,2,3,4"`, 2, 2 → `["1,2", "3,4"]`.
    - Template, `tp_size` entries, each an integer in [0, tp_size): replica r gets `r * tp_size + entry`;
      `"0,1"`, 4, 2 → `["0,1", "2,3", "4,5", "6,7"]`.

    Raises ValueError for anything else; the message names the stage.
    """
    if num_replicas < 1 or tp_size < 1:
        raise ValueError(f"stage {stage_id}: replicas ({num_replicas}) and tensor parallel size ({tp_size}) start at 1")
    if num_replicas == 1 or devices is None:
        return [devices] * num_replicas
    entries = [entry.strip() for entry in devices.split(",")]
    if not all(entries) or len(set(entries)) != len(entries):
        raise ValueError(f"stage {stage_id}: devices {devices!r} has an empty or a repeated entry")
    if len(entries) == num_replicas * tp_size:
        return [",".join(entries[r * tp_size : (r + 1) * tp_size]) for r in range(num_replicas)]
    if len(entries) == tp_size:
        offsets = _template_offsets(entries, tp_size, stage_id)
        return [",".join(str(r * tp_size + offset) for offset in offsets) for r in range(num_replicas)]
    raise ValueError(
        f"stage {stage_id}: {len(entries)} devices for {num_replicas} replicas of {tp_size}; "
        f"give {num_replicas * tp_size} (a pool) or {tp_size} (a template)"
    )


def launcher_devices(devices: str, environ: Mapping[str, str], stage_id: int) -> str:
    """Translate `devices` to the machine's numbers: an integer counts within the devices that the launching process sees.

    With CUDA_VISIBLE_DEVICES=4,5 the devices `0,1` of a stage are 4 and 5. Entries that are no integers, such as UUIDs, and
    all entries where the launcher is not narrowed, stay as they are. Raises ValueError for a device that is not there.
    """
    variable = next((name for name in VISIBILITY_VARIABLES if name in environ), None)
    if variable is None or not devices.strip():
        return _entries(devices)
    seen = [entry for entry in _entries(environ[variable]).split(",") if entry]
    return ",".join(_seen_device(entry, seen, variable, stage_id) for entry in _entries(devices).split(","))


def visible_devices_env(devices: str) -> dict[str, str]:
    """Make the environment in which a process sees these devices only; empty for empty `devices`, which narrows nothing."""
    return dict.fromkeys(VISIBILITY_VARIABLES, _entries(devices)) if _entries(devices) else {}


def _entries(devices: str) -> str:
    return ",".join(entry.strip() for entry in devices.split(","))


def _seen_device(entry: str, seen: Sequence[str], variable: str, stage_id: int) -> str:
    if not entry.isdecimal():
        return entry
    if int(entry) >= len(seen):
        raise ValueError(f"stage {stage_id}: there is no device {entry}: {variable} is {','.join(seen)!r}")
    return seen[int(entry)]


def _template_offsets(entries: list[str], tp_size: int, stage_id: int) -> list[int]:
    if not all(entry.isdecimal() and int(entry) < tp_size for entry in entries):
        raise ValueError(
            f"stage {stage_id}: {len(entries)} devices are a template for every replica, "
            f"so each must be an integer in [0, {tp_size}): {','.join(entries)!r}"
        )
    return [int(entry) for entry in entries]
