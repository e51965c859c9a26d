"""Tokens of prompts over HTTP, where there is nobody to ask for them; with a real model: e2e/test_text_surface.py."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from omnibus.broker.connection import Connection
from omnibus.client.prompt_tokens import prompt_tokens
from omnibus.errors import InvalidRequest, Overloaded
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.registry.presence.replica_record import read_replicas
from omnibus.wire import codec, subjects
from omnibus.wire.control import AskTokens, PromptTokens, Rpc, RpcReply
from omnibus.wire.request import Request
from omnibus.workers.control_subscriber import MOST_CALLS, ControlHandlers, ControlSubscriber
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


async def test_operators_calls_are_answered_when_too_many_questions_for_tokens_are_open(
    connection: Connection, pipeline: str
) -> None:
    go = asyncio.Event()

    class Slow:
        async def tokens(self, *_: object, **__: object) -> PromptTokens:
            await go.wait()
            return PromptTokens(token_ids=(7,), context=9)

    nothing: Any = SimpleNamespace(replica="r0")
    engine: Any = Slow()
    control = ControlSubscriber(
        connection, pipeline, 0, handlers=ControlHandlers(engine, nothing, leave=nothing), claims=nothing,
        telemetry=nothing, streams=nothing, free=lambda _rid, _run: None,
    )  # fmt: skip

    async def ask(subject: str, message: AskTokens | Rpc) -> RpcReply:
        answer = await connection.request(subject, codec.encode(message), timeout=60.0)
        reply: RpcReply = codec.decode(answer.data, RpcReply)
        return reply

    question = AskTokens(request=Request(prompt="a"))
    await control.listen()
    try:
        asked = [asyncio.create_task(ask(subjects.ask(pipeline, 0, "r0"), question)) for _ in range(MOST_CALLS + 1)]
        (refused,), _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED, timeout=60.0)
        failure = refused.result().failure
        assert failure is not None
        assert isinstance(failure.exception(), Overloaded)
        called = await ask(subjects.ctl(pipeline, 0, "r0"), Rpc(method="is_sleeping"))
        assert (called.error, called.value) == (None, codec.pack(False))
        go.set()
        assert sum(reply.value is not None for reply in await asyncio.gather(*asked)) == MOST_CALLS
    finally:
        await control.close()
