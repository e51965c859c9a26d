"""How the replicas of a stage come up: which devices and environment each gets, in which order, and within which time.

Everything that stage initialisation is made of, under one name; the pure parts live in `omnibus.pipeline`.
"""

from __future__ import annotations

from omnibus.lineage import set_death_signal, terminate_alive_proc
from omnibus.pipeline.devices import (
    compute_replica_layout,
    get_stage_devices_per_replica,
    get_stage_tp_size,
    split_devices_for_replicas,
)
from omnibus.pipeline.overrides import apply_cli_tokenizer
from omnibus.workers.initialisation.environment import setup_stage_devices, stage_runtime_env
from omnibus.workers.initialisation.locks import acquire_device_locks, release_device_locks
from omnibus.workers.initialisation.plans import (
    LaunchMode,
    LogicalStageInitPlan,
    ReplicaInitPlan,
    StageConnectorSpec,
    StageMetadata,
    extract_stage_metadata,
    plan_stages,
)

__all__ = [
    "LaunchMode",
    "LogicalStageInitPlan",
    "ReplicaInitPlan",
    "StageConnectorSpec",
    "StageMetadata",
    "acquire_device_locks",
    "apply_cli_tokenizer",
    "compute_replica_layout",
    "extract_stage_metadata",
    "get_stage_devices_per_replica",
    "get_stage_tp_size",
    "plan_stages",
    "release_device_locks",
    "set_death_signal",
    "setup_stage_devices",
    "split_devices_for_replicas",
    "stage_runtime_env",
    "terminate_alive_proc",
]
