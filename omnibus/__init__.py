"""Serve omni-modality models as a pipeline of stages over NATS JetStream.

The public names. Each is imported when it is first used: `import omnibus` itself costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omnibus.broker.connection import connect
    from omnibus.client.async_omni import AsyncOmni
    from omnibus.client.async_omni_engine import AsyncOmniEngine
    from omnibus.client.omni import Omni, OmniResult
    from omnibus.client.producer import Producer, Submission
    from omnibus.client.request_events import Ended, Output, OutputArrived, Result, StepProgress, TextPiece
    from omnibus.client.request_outputs import OmniRequestOutput
    from omnibus.client.rpc import CollectiveAnswer, ReplicaAnswer
    from omnibus.client.session import Aborted
    from omnibus.client.stage_info import StageRuntimeInfo
    from omnibus.errors import OmnibusError
    from omnibus.pipeline.loading import load_pipeline
    from omnibus.pipeline.spec import PipelineSpec
    from omnibus.registry.deployed_pipelines import load_deployed
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

_PUBLIC = {
    "broker.connection": ("connect",),
    "client.async_omni": ("AsyncOmni",),
    "client.async_omni_engine": ("AsyncOmniEngine",),
    "client.request_events": ("Ended", "Output", "OutputArrived", "Result", "StepProgress", "TextPiece"),
    "client.omni": ("Omni", "OmniResult"),
    "client.request_outputs": ("OmniRequestOutput",),
    "client.producer": ("Producer", "Submission"),
    "client.rpc": ("CollectiveAnswer", "ReplicaAnswer"),
    "client.session": ("Aborted",),
    "client.stage_info": ("StageRuntimeInfo",),
    "errors": ("OmnibusError",),
    "pipeline.loading": ("load_pipeline",),
    "pipeline.spec": ("PipelineSpec",),
    "registry.deployed_pipelines": ("load_deployed",),
    "wire.request": ("Request",),
}
_MODULE_OF = {name: f"omnibus.{module}" for module, names in _PUBLIC.items() for name in names}


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'omnibus' has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return sorted(__all__)
