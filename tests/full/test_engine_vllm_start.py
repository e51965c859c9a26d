"""The reason why vLLM does not start reaches who has to mend it."""

from __future__ import annotations

from pathlib import Path

import pytest

from omnibus.errors import StageStartError
from omnibus.pipeline.spec import StageSpec
from omnibus.workers.engines.vllm.engine import VllmEngine
from tests.support import tiny_checkpoints

pytestmark = pytest.mark.e2e


@pytest.mark.filterwarnings("ignore")
async def test_reason_of_engine_core_is_named_when_it_does_not_start(tmp_path: Path) -> None:
    """vLLM's own error says that the cause is above, and that the processes that failed are {}."""
    checkpoint = tiny_checkpoints.make_llm(tmp_path / "llm", tokenizer=False)
    arguments = {"kv_cache_memory_bytes": 1000}
    spec = StageSpec(stage_id=0, name="llm", engine="vllm", model=str(checkpoint), engine_args=arguments)
    engine = VllmEngine(spec)
    with pytest.raises(StageStartError, match=r"vllm did not start: ValueError: .*cache blocks") as failed:
        await engine.start()
    assert "root cause above" not in failed.value.message
    await engine.close()
