"""Which devices each replica of a stage sees."""

from __future__ import annotations

from omnibus.pipeline.spec import StageSpec

VISIBILITY_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES")
"""Read by CUDA, ROCm and Ascend runtimes; each ignores the others'."""


def replica_devices(stage: StageSpec, num_replicas: int | None = None) -> list[str]:
    """The `devices` of each replica of a stage, by index.

    `num_replicas` overrides the stage's own number. A stage without devices narrows nothing: every entry is empty.
    Raises ValueError when the stage's devices cannot be shared out so.
    """
    count = stage.num_replicas if num_replicas is None else num_replicas
    if not stage.devices.strip():
        return [""] * count
    return split_devices_for_replicas(stage.devices, count, stage.tp_size, stage.stage_id)


def split_devices_for_replicas(devices: str, num_replicas: int, tp_size: int, stage_id: int) -> list[str]:
    """Share a stage's comma-separated devices out among its replicas.

    - One replica: `devices` unchanged.
    - Pool, `num_replicas * tp_size` entries: consecutive slices; `"1,2,3,4"`, 2, 2 → `["1,2", "3,4"]`.
    - Template, `tp_size` entries, each an integer in [0, tp_size): replica r gets `r * tp_size + entry`;
      `"0,1"`, 4, 2 → `["0,1", "2,3", "4,5", "6,7"]`.

    Raises ValueError for anything else; the message names the stage.
    """
    if num_replicas < 1 or tp_size < 1:
        raise ValueError(f"stage {stage_id}: replicas ({num_replicas}) and tensor parallel size ({tp_size}) start at 1")
    if num_replicas == 1:
        return [devices]
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


def visible_devices_env(devices: str) -> dict[str, str]:
    """Environment that makes a process see these devices only; empty for empty `devices`, which narrows nothing."""
    visible = ",".join(entry.strip() for entry in devices.split(","))
    return dict.fromkeys(VISIBILITY_VARIABLES, visible) if visible else {}


def _template_offsets(entries: list[str], tp_size: int, stage_id: int) -> list[int]:
    if not all(entry.isdecimal() and int(entry) < tp_size for entry in entries):
        raise ValueError(
            f"stage {stage_id}: {len(entries)} devices are a template for every replica, "
            f"so each must be an integer in [0, {tp_size}): {','.join(entries)!r}"
        )
    return [int(entry) for entry in entries]
