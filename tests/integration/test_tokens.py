"""Tokens of prompts over HTTP, where there is nobody to ask for them; with a real model: e2e/test_text_surface.py."""

from __future__ import annotations

import asyncio

import pytest

from omnibus.broker.connection import Connection
from omnibus.client.prompt_tokens import prompt_tokens
from omnibus.errors import InvalidRequest
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.registry.presence.replica_record import read_replicas
from omnibus.wire.control import AskTokens
from omnibus.wire.request import Request
from tests.support.front import front, omni_sim

pytestmark = pytest.mark.integration


async def test_tokens_are_refused_when_no_stage_that_reads_prompts_has_a_tokenizer(
    connection: Connection, pipeline: str
) -> None:
    async with front(connection, omni_sim(pipeline)) as door:
        for path, body in (("/tokenize", {"prompt": "a"}), ("/v1/detokenize", {"tokens": [1]})):
            answer = await door.http.post(path, json=body)
            error = answer.json()["error"]
            assert (answer.status_code, error["param"]) == (400, "model")
            assert "prompts are read by sim, and only vllm tells tokens" in error["message"]
        missing = await door.http.post("/tokenize", json={"model": "nothing", "prompt": "a"})
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
        # A replica of an engine without a tokenizer that is asked all the same says so.
        replicas = await read_replicas(connection, pipeline)
        with pytest.raises(InvalidRequest, match="no tokenizer"):
            async with asyncio.timeout(20.0):
                await prompt_tokens(connection, door.spec, replicas, AskTokens(request=Request(prompt="a")))


async def test_tokens_wait_for_nobody_when_no_replica_is_up(connection: Connection, pipeline: str) -> None:
    stage = StageSpec(
        stage_id=0, name="llm", engine="vllm", model="/nowhere", final_output=True, final_output_type="text"
    )
    spec = PipelineSpec(name=pipeline, deadline=60.0, stages=(stage,))
    async with front(connection, spec, workers=False) as door:
        answer = await door.http.post("/tokenize", json={"prompt": "a"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_not_ready")
        assert answer.headers["retry-after"]
