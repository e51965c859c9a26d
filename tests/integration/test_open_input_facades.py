"""Open inputs through the façades and over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager

import httpx
import pytest

from omnibus.broker.connection import Connection
from omnibus.client.async_omni import AsyncOmni
from omnibus.client.async_omni_engine import AsyncOmniEngine
from omnibus.client.request_outputs import OmniRequestOutput
from omnibus.errors import EmptyPrompt, InputClosed, InvalidRequest, UnknownRequest
from omnibus.frontdoor.context import Options
from omnibus.pipeline.spec import PipelineSpec
from omnibus.registry.deployed_pipelines import deploy_pipeline
from omnibus.requests.state import RequestState
from omnibus.wire.request import Request
from tests.support import listening_stages
from tests.support.flow import serving
from tests.support.front import front
from tests.support.sessions import LONG, pipeline_of
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    listening_stages.reset()
    yield
    listening_stages.reset()


@asynccontextmanager
async def omni_of(connection: Connection, spec: PipelineSpec) -> AsyncIterator[AsyncOmni]:
    async with serving(connection, spec):
        await deploy_pipeline(connection, spec)
        omni = await asyncio.to_thread(AsyncOmni, spec.name, nats=connection.url)
        async with omni:
            yield omni


def segments_of(outputs: list[OmniRequestOutput]) -> list[str]:
    texts = [""]
    for output in outputs:
        texts[-1] += output.delta
        texts += [""] if output.segment_finished else []
    return texts


async def test_generator_sends_segments_and_has_the_answer_to_each(connection: Connection, pipeline: str) -> None:
    answered, outputs = asyncio.Event(), list[OmniRequestOutput]()

    async def segments() -> AsyncIterator[str]:
        for text in ("hello", "how are", "you"):
            yield text
            await answered.wait()
            answered.clear()

    async with omni_of(connection, pipeline_of(pipeline)) as omni, aclosing(omni.generate(segments())) as generated:
        async for output in generated:
            outputs.append(output)
            if output.segment_finished:
                answered.set()
    assert segments_of(outputs) == ["HELLO ", "HOW ARE ", "YOU ", ""]
    assert (outputs[-1].finished, outputs[-1].text) == (True, "HELLO HOW ARE YOU ")


async def test_session_ends_with_the_stage_though_the_generator_would_go_on(
    connection: Connection, pipeline: str
) -> None:
    async def segments() -> AsyncIterator[str]:
        yield "bye"
        await asyncio.Event().wait()

    async with omni_of(connection, pipeline_of(pipeline)) as omni:
        outputs = [output async for output in omni.generate(segments())]
    assert outputs[-1].text == "BYE "


async def test_request_is_aborted_when_its_generator_raises_or_is_left(connection: Connection, pipeline: str) -> None:
    async def raising() -> AsyncIterator[str]:
        yield "hello"
        raise ValueError("no more")

    async def silent() -> AsyncIterator[str]:
        yield "hello"
        await asyncio.Event().wait()

    async def nothing() -> AsyncIterator[str]:
        for text in ():
            yield text

    spec = pipeline_of(pipeline)
    async with omni_of(connection, spec) as omni:
        with pytest.raises(ValueError, match="no more"):
            _ = [output async for output in omni.generate(raising(), "raises")]
        async with aclosing(omni.generate(silent(), "left")) as generated:
            await anext(generated)
        with pytest.raises(EmptyPrompt):
            _ = [output async for output in omni.generate(nothing())]
        for rid in ("raises", "left"):
            (aborted,) = await omni.abort(rid)
            assert aborted.state is RequestState.CANCELLED


async def test_reader_that_gave_up_waiting_goes_on_and_one_that_drops_its_outputs_aborts(
    connection: Connection, pipeline: str
) -> None:
    texts: asyncio.Queue[str | None] = asyncio.Queue()

    async def segments() -> AsyncIterator[str]:
        while (text := await texts.get()) is not None:
            yield text

    async with omni_of(connection, pipeline_of(pipeline)) as omni:
        outputs, seen = omni.generate(segments(), "patient"), list[OmniRequestOutput]()
        for number, text in enumerate(("hello", "you"), start=1):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(outputs), 0.05)
            texts.put_nowait(text)
            while sum(output.segment_finished for output in seen) < number:
                seen.append(await asyncio.wait_for(anext(outputs), LONG))
        texts.put_nowait(None)
        seen += [output async for output in outputs]
        assert "".join(output.delta for output in seen) == seen[-1].text == "HELLO YOU "

        dropped = omni.generate(segments(), "dropped")
        texts.put_nowait("hello")
        while not (await anext(dropped)).segment_finished:
            pass
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(dropped), 0.05)
        assert await state_of(omni, "dropped") is RequestState.OPEN
        del dropped
        await eventually(lambda: _is(omni, "dropped", RequestState.CANCELLED), LONG, what="it is aborted")
        assert await state_of(omni, "patient") is RequestState.DONE


async def state_of(omni: AsyncOmni, rid: str) -> RequestState:
    return (await omni.run_async(omni.session.producer.result(omni.spec.name, rid))).state


async def _is(omni: AsyncOmni, rid: str, state: RequestState) -> bool:
    return await state_of(omni, rid) is state


async def test_engine_takes_updates_until_the_last_one(connection: Connection, pipeline: str) -> None:
    spec = pipeline_of(pipeline)
    async with serving(connection, spec):
        await deploy_pipeline(connection, spec)
        engine = await asyncio.to_thread(AsyncOmniEngine, spec.name, nats=connection.url)
        try:
            await engine.add_request_async("a", "hello", resumable=True)
            outputs = [await taken(engine)]
            for wrong in (
                {"sampling_params_list": [{}]},
                {"arrival_time": 1.0},
                {"prompt_text": "x"},
                {"final_stage_id": 0},
            ):
                with pytest.raises(InvalidRequest, match=f"{next(iter(wrong))} is of the whole request"):
                    await engine.add_streaming_update_async("a", "more", **wrong)
            with pytest.raises(InvalidRequest, match="nothing else"):
                await engine.add_streaming_update_async("a", Request(prompt="x", priority=3))
            await engine.add_streaming_update_async("a", {"prompt": "how are"})
            await engine.add_streaming_update_async("a", "you", resumable=False)
            while not outputs[-1].finished:
                outputs.append(await taken(engine))
            assert segments_of(outputs) == ["HELLO ", "HOW ARE ", "YOU ", ""]
            assert outputs[-1].text == "HELLO HOW ARE YOU "
            with pytest.raises(InputClosed, match="is done"):
                await engine.add_streaming_update_async("a", "more")
            with pytest.raises(UnknownRequest):
                await engine.add_streaming_update_async("nobody", "more")
        finally:
            await asyncio.to_thread(engine.shutdown)


async def taken(engine: AsyncOmniEngine) -> OmniRequestOutput:
    output = await engine.try_get_output_async(LONG)
    assert output is not None
    return output


async def test_segments_come_over_http_while_the_answer_streams(connection: Connection, pipeline: str) -> None:
    spec = pipeline_of(pipeline)
    async with front(connection, spec) as made:
        lines: list[str] = []
        body = {
            "model": spec.name,
            "messages": [{"role": "user", "content": "hello"}],
            "stream": True,
            "resumable": True,
        }

        async def follow() -> None:
            async with made.http.stream("POST", "/v1/chat/completions", json=body, timeout=LONG) as answer:
                rids.append(answer.headers["x-request-id"])
                lines.extend([line async for line in answer.aiter_lines() if line.startswith("data: {")])

        rids: list[str] = []
        following = asyncio.create_task(follow())
        await eventually(lambda: rids, LONG)
        path = f"/v1/requests/{rids[0]}/input"

        async def sent(**segment: object) -> httpx.Response:
            return await made.http.post(path, json=segment)

        for _ in range(2):
            first = await sent(number=1, prompt="how are")
            assert (first.status_code, first.json()["number"]) == (200, 1)
        turns = [{"role": "user", "content": "you"}]
        refused = [
            (await sent(number=1, prompt="other"), 409, "request_conflict"),
            (await sent(number=3, prompt="x"), 400, "invalid_request"),
            (await sent(number=0, prompt="x"), 400, None),
            (await sent(number=2), 400, "invalid_request"),
            (await sent(number=2, prompt="x", messages=turns), 400, "invalid_request"),
            (await made.http.post("/v1/requests/nobody/input", json={"prompt": "x"}), 404, "request_not_found"),
        ]
        for answer, status, code in refused:
            assert answer.status_code == status, answer.text
            assert code in (None, answer.json()["error"]["code"])
        assert (await sent(messages=turns, end=True, model=spec.name)).json() == {
            "id": rids[0], "object": "request.segment", "number": 2, "end": True,
        }  # fmt: skip
        await following
        chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
        said = "".join(
            f"[{chunk['segment_finished']}]"
            if "segment_finished" in chunk
            else chunk["choices"][0]["delta"].get("content") or ""
            for chunk in chunks
        )
        assert said == "HELLO [0]HOW ARE [1]YOU [2]"
        closed = await sent(prompt="more")
        assert (closed.status_code, closed.json()["error"]["code"]) == (409, "input_closed")


async def test_segment_of_another_tenant_finds_no_request(connection: Connection, pipeline: str) -> None:
    spec = pipeline_of(pipeline)
    async with front(connection, spec, Options(api_keys=("ours", "theirs"))) as made:
        body = {"model": spec.name, "prompt": "hello", "stream": True, "resumable": True}
        ours = {"Authorization": "Bearer ours"}
        async with made.http.stream("POST", "/v1/completions", json=body, headers=ours, timeout=LONG) as answer:
            path = f"/v1/requests/{answer.headers['x-request-id']}/input"
            for key, status in (("theirs", 404), ("ours", 200)):
                sent = await made.http.post(path, json={"end": True}, headers={"Authorization": f"Bearer {key}"})
                assert sent.status_code == status, sent.text
            assert [line async for line in answer.aiter_lines()][-2:] == ["data: [DONE]", ""]


async def test_headers_with_the_id_come_at_once_when_the_stage_waits_for_further_segments(
    connection: Connection, pipeline: str
) -> None:
    spec = pipeline_of(pipeline, "kinds")
    async with front(connection, spec, Options(first_event_wait=LONG)) as made:
        body = {"model": spec.name, "prompt": "hello", "stream": True, "resumable": True}
        async with asyncio.timeout(LONG / 2), made.http.stream("POST", "/v1/completions", json=body) as answer:
            ended = await made.http.post(f"/v1/requests/{answer.headers['x-request-id']}/input", json={"end": True})
            assert ended.status_code == 200, ended.text
            lines = [line async for line in answer.aiter_lines()]
        assert any("text:5" in line for line in lines), lines


async def test_open_input_without_a_stream_is_refused_over_http(connection: Connection, pipeline: str) -> None:
    spec = pipeline_of(pipeline)
    async with front(connection, spec) as made:
        body = {"model": spec.name, "prompt": "hello", "resumable": True}
        refused = await made.http.post("/v1/completions", json=body)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "stream"), refused.text
