"""The public names, and what importing them costs."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import omnibus
from omnibus.client.async_omni import AsyncOmni
from omnibus.client.async_omni_engine import AsyncOmniEngine
from omnibus.client.omni import Omni
from omnibus.client.omni_base import OmniBase

pytestmark = pytest.mark.unit

NAMES = {
    "Aborted", "AsyncOmni", "AsyncOmniEngine", "CollectiveAnswer", "Ended", "MediaPiece", "Omni", "OmniRequestOutput",
    "OmniResult", "OmnibusError", "Output", "OutputArrived", "PipelineSpec", "Producer", "ReplicaAnswer", "Request", "Result",
    "StageRuntimeInfo", "StepProgress", "Submission", "TextPiece", "connect", "load_deployed", "load_pipeline",
}  # fmt: skip
HEAVY = ("torch", "vllm", "diffusers", "transformers")


def test_public_names_are_exactly_these() -> None:
    assert set(omnibus.__all__) == NAMES == set(dir(omnibus))


@pytest.mark.parametrize("name", sorted(NAMES))
def test_public_name_is_there_when_it_is_asked_for(name: str) -> None:
    assert getattr(omnibus, name).__name__ == name


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Omnia'"):
        _ = omnibus.Omnia


def test_nothing_is_imported_with_omnibus_itself() -> None:
    loaded = _run("import sys; before = set(sys.modules); import omnibus; print(*(set(sys.modules) - before))")
    assert not {name for name in loaded if name.partition(".")[0] in {*HEAVY, "nats", "numpy", "msgspec", "pydantic"}}
    assert {name for name in loaded if name.startswith("omnibus.")} == set()


def test_no_heavy_engine_is_imported_with_the_facades() -> None:
    loaded = _run("import sys; from omnibus import AsyncOmni, AsyncOmniEngine, Omni, Producer; print(*sys.modules)")
    assert not {name.partition(".")[0] for name in loaded} & set(HEAVY)


@pytest.mark.parametrize("facade", [Omni, AsyncOmni, AsyncOmniEngine])
def test_a_facade_is_its_own_engine(facade: type[OmniBase]) -> None:
    omni = facade.__new__(facade)
    assert omni.engine is omni


def test_engine_has_the_known_signature_when_code_comes_from_vllm_omni() -> None:
    """Parity: AsyncOmniEngine's members and argument names."""
    assert _names(AsyncOmniEngine.__init__)[:4] == ["self", "model", "stage_init_timeout", "init_timeout"]
    asked = [
        "self", "request_id", "prompt", "prompt_text", "sampling_params_list", "final_stage_id",
        "final_output_stage_ids", "arrival_time", "lora_request", "trace_headers", "priority", "data_parallel_rank",
        "resumable",
    ]  # fmt: skip
    called = ["self", "method", "timeout", "args", "kwargs", "stage_ids"]
    for suffix in ("", "_async"):
        assert _names(getattr(AsyncOmniEngine, f"add_request{suffix}")) == asked
        assert _names(getattr(AsyncOmniEngine, f"collective_rpc{suffix}")) == called
        assert _names(getattr(AsyncOmniEngine, f"abort{suffix}")) == ["self", "request_ids", "timeout"]
        assert _names(getattr(AsyncOmniEngine, f"try_get_output{suffix}")) == ["self", "timeout"]
        assert hasattr(AsyncOmniEngine, f"add_streaming_update{suffix}")
    for facade in (Omni, AsyncOmni):
        assert _names(facade.__init__)[:4] == ["self", "model", "stage_init_timeout", "init_timeout"]
        assert _names(facade.abort)[:2] == ["self", "request_id"]
        assert _names(facade.collective_rpc) == called
        assert all(hasattr(facade, name) for name in ("shutdown", "close", "sleep", "is_sleeping", "start_profile"))
    members = (
        "num_stages",
        "stage_metadata",
        "default_sampling_params_list",
        "supported_tasks",
        "is_alive",
        "shutdown",
    )
    assert all(hasattr(AsyncOmniEngine, name) for name in (*members, "get_stage_metadata"))


def _names(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)  # type: ignore[arg-type]


def _run(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.split()
