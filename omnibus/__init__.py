"""Serve omni-modality models as a pipeline of stages over NATS JetStream.

The public names. Each is imported when it is first used: `import omnibus` itself costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omnibus.broker.connection import connect as connect
    from omnibus.client.async_omni import AsyncOmni as AsyncOmni
    from omnibus.client.async_omni_engine import AsyncOmniEngine as AsyncOmniEngine
    from omnibus.client.omni import Omni as Omni
    from omnibus.client.omni import OmniResult as OmniResult
    from omnibus.client.producer import Producer as Producer
    from omnibus.client.producer import Submission as Submission
    from omnibus.client.request_events import Ended as Ended
    from omnibus.client.request_events import MediaPiece as MediaPiece
    from omnibus.client.request_events import Output as Output
    from omnibus.client.request_events import OutputArrived as OutputArrived
    from omnibus.client.request_events import Result as Result
    from omnibus.client.request_events import StepProgress as StepProgress
    from omnibus.client.request_events import TextPiece as TextPiece
    from omnibus.client.request_outputs import OmniRequestOutput as OmniRequestOutput
    from omnibus.client.rpc import CollectiveAnswer as CollectiveAnswer
    from omnibus.client.rpc import ReplicaAnswer as ReplicaAnswer
    from omnibus.client.session import Aborted as Aborted
    from omnibus.client.stage_info import StageRuntimeInfo as StageRuntimeInfo
    from omnibus.errors import OmnibusError as OmnibusError
    from omnibus.pipeline.loading import load_pipeline as load_pipeline
    from omnibus.pipeline.spec import PipelineSpec as PipelineSpec
    from omnibus.registry.deployed_pipelines import load_deployed as load_deployed
    from omnibus.wire.request import Request as Request

_PUBLIC = {
    "broker.connection": ("connect",),
    "client.async_omni": ("AsyncOmni",),
    "client.async_omni_engine": ("AsyncOmniEngine",),
    "client.request_events": ("Ended", "MediaPiece", "Output", "OutputArrived", "Result", "StepProgress", "TextPiece"),
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
__all__ = sorted(_MODULE_OF)  # noqa: PLE0605 the table is the one list of them


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'omnibus' has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    return __all__
