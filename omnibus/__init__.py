"""Serve omni-modality models as a pipeline of stages over NATS JetStream.

The public names. Each is imported when it is first used: `import omnibus` itself costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omnibus.broker.connection import connect
    from omnibus.client.async_omni import AsyncOmni
    from omnibus.client.engine import AsyncOmniEngine
    from omnibus.client.events import Ended, Output, OutputArrived, Result, StepProgress, TextPiece
    from omnibus.client.omni import Omni, OmniResult
    from omnibus.client.outputs import OmniRequestOutput
    from omnibus.client.producer import Producer, Submission
    from omnibus.client.rpc import CollectiveAnswer, ReplicaAnswer
    from omnibus.client.session import Aborted
    from omnibus.client.stages import StageRuntimeInfo
    from omnibus.errors import OmnibusError
    from omnibus.pipeline.loading import load_pipeline
    from omnibus.pipeline.spec import PipelineSpec
    from omnibus.registry.pipelines import load_deployed
    from omnibus.wire.request import Request

__all__ = [
    "Aborted",
    "AsyncOmni",
    "AsyncOmniEngine",
    "CollectiveAnswer",
    "Ended",
    "Omni",
    "OmniRequestOutput",
    "OmniResult",
    "OmnibusError",
    "Output",
    "OutputArrived",
    "PipelineSpec",
    "Producer",
    "ReplicaAnswer",
    "Request",
    "Result",
    "StageRuntimeInfo",
    "StepProgress",
    "Submission",
    "TextPiece",
    "connect",
    "load_deployed",
    "load_pipeline",
]

_HOMES = {
    "broker.connection": ("connect",),
    "client.async_omni": ("AsyncOmni",),
    "client.engine": ("AsyncOmniEngine",),
    "client.events": ("Ended", "Output", "OutputArrived", "Result", "StepProgress", "TextPiece"),
    "client.omni": ("Omni", "OmniResult"),
    "client.outputs": ("OmniRequestOutput",),
    "client.producer": ("Producer", "Submission"),
    "client.rpc": ("CollectiveAnswer", "ReplicaAnswer"),
    "client.session": ("Aborted",),
    "client.stages": ("StageRuntimeInfo",),
    "errors": ("OmnibusError",),
    "pipeline.loading": ("load_pipeline",),
    "pipeline.spec": ("PipelineSpec",),
    "registry.pipelines": ("load_deployed",),
    "wire.request": ("Request",),
}
_HOME_OF = {name: f"omnibus.{module}" for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'omnibus' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
