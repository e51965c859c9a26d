"""Responses, videos and batches that were accepted stay, whatever becomes of calls beside them, and take no more room than their
owner has."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest
from msgspec.structs import replace

from omnibus.batches.batch_record import BatchRecord
from omnibus.batches.batch_store import BatchStore
from omnibus.broker.connection import Connection
from omnibus.broker.layout import ensure_layout, layout_of
from omnibus.errors import AttemptSuperseded, Overloaded
from omnibus.files.line_log import LineLog
from omnibus.files.tenant_usage import TenantUsage
from omnibus.frontdoor import job_runner
from omnibus.frontdoor.api_keys import KeyFile, KeyTable, Role, read_setting
from omnibus.frontdoor.batching.line_answers import LineAnswers
from omnibus.frontdoor.batching.line_window import LineWindows
from omnibus.frontdoor.context import Options
from omnibus.frontdoor.responses.response_store import ResponseStore
from tests.support.batches import answers, begun, chat, ended, request
from tests.support.filming_stages import films
from tests.support.front import Front, front, omni_sim
from tests.support.waiting import eventually

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning"),
]


def options(name: str, **more: Any) -> Options:
    """Of a tenant that has stored nothing yet: the stores are one for all pipelines."""
    return Options(api_keys=(name,), **more)


async def full(*_: object) -> None:
    raise Overloaded


@pytest.mark.parametrize(
    ("path", "body"),
    [("responses", {"input": "hello", "background": True}), ("videos", {"prompt": "a red circle"})],
    ids=["response", "video"],
)
async def test_a_job_stays_when_a_repeat_of_its_call_is_refused(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    spec = films(pipeline) if path == "videos" else omni_sim(pipeline)
    async with front(connection, spec, options(pipeline), workers=False) as door:
        key = {"Idempotency-Key": "once"}
        first = await door.http.post(f"/v1/{path}", json=body, headers=key)
        assert first.status_code == 200, first.text
        monkeypatch.setattr("omnibus.frontdoor.job_submission.send", full)
        assert (await door.http.post(f"/v1/{path}", json=body, headers=key)).status_code == 429
        found = await door.http.get(f"/v1/{path}/{first.json()['id']}")
        assert (found.status_code, found.json()["status"]) == (200, "queued")
        refused = await door.http.post(f"/v1/{path}", json=body, headers={"Idempotency-Key": "another"})
        assert refused.status_code == 429
        if path == "videos":
            assert len((await door.http.get("/v1/videos")).json()["data"]) == 1, "the refused one left nothing"


async def test_what_was_asked_in_the_background_counts_before_it_is_answered(
    connection: Connection, pipeline: str
) -> None:
    async with front(connection, omni_sim(pipeline), options(pipeline, files_quota=20_000), workers=False) as door:
        first = await door.openai.responses.create(input="long " * 5000, background=True)
        with pytest.raises(openai.APIStatusError) as refused:
            await door.openai.responses.create(input="short", background=True)
        assert (refused.value.status_code, refused.value.code) == (413, "quota_exceeded")
        await door.openai.responses.delete(first.id)
        assert (await door.openai.responses.create(input="short", background=True)).status == "queued"


async def test_no_response_is_found_whose_log_could_not_be_written(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = LineLog.remove

    async def removed_and_begun_by_another(log: LineLog) -> None:
        await real(log)
        await LineLog(connection, log._stored.name, ttl=60.0).append(b"part of another's\n")

    async with front(connection, omni_sim(pipeline), options(pipeline)) as door:
        body, key = {"input": "hello"}, {"Idempotency-Key": "contested"}
        made = ResponseStore.keep

        async def contested(store: ResponseStore, record: Any, *more: Any) -> None:
            await removed_and_begun_by_another(store._log(record))
            monkeypatch.setattr(LineLog, "remove", removed_and_begun_by_another)
            await made(store, record, *more)

        with monkeypatch.context() as patch:
            patch.setattr(ResponseStore, "keep", contested)
            failed = await door.http.post("/v1/responses", json=body, headers=key)
        monkeypatch.setattr(LineLog, "remove", real)
        assert (failed.status_code, failed.json()["error"]["code"]) == (503, "broker_unavailable")
        kept = await door.http.post("/v1/responses", json=body, headers=key)
        assert kept.status_code == 200, kept.text
        found = await door.http.get(f"/v1/responses/{kept.json()['id']}")
        assert found.json()["output"] == kept.json()["output"]


async def test_a_response_has_failed_when_its_log_is_lost(connection: Connection, pipeline: str) -> None:
    async with front(connection, omni_sim(pipeline), options(pipeline), workers=False) as door:
        made = await door.openai.responses.create(input="hello", background=True)
        await LineLog(connection, made.id, ttl=60.0).remove()
    store, owner = ResponseStore(connection, TenantUsage(1 << 20)), read_setting(pipeline).tenant

    async def has_failed() -> bool:
        return (await store.find(owner, made.id)).status == "failed"

    async with front(connection, omni_sim(pipeline), options(pipeline), workers=False, responses=True):
        assert await eventually(has_failed, 20.0, what="its record says so")


async def test_what_the_lines_of_a_batch_store_is_kept_no_longer_than_the_key_allows(
    connection: Connection, pipeline: str, tmp_path: Path
) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    key = keys.add("mobile", Role.USER, 5000.0)
    async with front(connection, omni_sim(pipeline), Options(api_keys_file=keys.path), batches=True) as door:
        client = door.openai.with_options(api_key=key)
        line = request("a", {"model": pipeline, "input": "hi"}, "/v1/responses")
        batch = await ended(client, await begun(client, [line], "/v1/responses", "30m"))
        (answer,) = (await answers(client, batch)).good
        caller = KeyTable((), keys.path).find(key)
        assert caller is not None
        store = ResponseStore(connection, TenantUsage(0))
        record = await store.find(caller.tenant, answer["response"]["body"]["id"])
        assert record.expires - record.created == 5000.0


async def test_a_batch_is_that_of_its_record_when_its_message_came_from_a_call_that_lost(
    connection: Connection, pipeline: str
) -> None:
    """Two calls with other bodies under one key: the message of the one is queued, the record of the other is stored."""
    async with front(connection, omni_sim(pipeline), options(pipeline)) as door:
        lost, won = [
            await _record(connection, door, await begun(door.openai, [chat(pipeline, name, name)])) for name in "ab"
        ]
        store, shared = BatchStore(connection), await BatchStore(connection).new_id()
        assert (await store.restore(replace(won, id=shared))).input_file_id == won.input_file_id
        assert (await store.create(replace(lost, id=shared))).input_file_id == won.input_file_id
    async with front(connection, omni_sim(pipeline), options(pipeline), batches=True) as door:
        batch = await ended(door.openai, await door.openai.batches.retrieve(shared))
        assert (batch.status, list((await answers(door.openai, batch)).by_id)) == ("completed", ["b"])


async def _record(connection: Connection, door: Front, batch: openai.types.Batch) -> BatchRecord:
    return await BatchStore(connection).find(read_setting(door.spec.name).tenant, batch.id)


async def test_a_runner_goes_when_another_has_appended_to_the_answers(connection: Connection, pipeline: str) -> None:
    await ensure_layout(connection, layout_of(omni_sim(pipeline)))
    batch = BatchRecord(
        id=await BatchStore(connection).new_id(), endpoint="/v1/completions", input_file_id="file-0",
        completion_window="24h", created=1.0, expires=2.0,
    )  # fmt: skip
    app: Any = SimpleNamespace(state=SimpleNamespace(context=None))
    mine = LineAnswers(app, LineWindows(app.state.context), LineLog(connection, batch.id, ttl=60.0), batch)
    await LineLog(connection, batch.id, ttl=60.0).append(b"another's\n")
    with pytest.raises(AttemptSuperseded):
        await mine._append(b"late\n")


async def test_files_of_a_response_are_no_more_together_than_a_body(connection: Connection, pipeline: str) -> None:
    async with front(connection, omni_sim(pipeline), options(pipeline, max_body_bytes=10_000), workers=False) as door:
        text = b"x" * 6000
        files = [await door.openai.files.create(file=("a.txt", text), purpose="user_data") for _ in range(2)]
        content: Any = [{"type": "input_file", "file_id": file.id} for file in files]
        with pytest.raises(openai.APIStatusError, match="together") as refused:
            await door.openai.responses.create(input=[{"role": "user", "content": content}], background=True)
        assert refused.value.status_code == 413


async def test_a_video_is_refused_when_the_requests_of_others_take_all_the_room(
    connection: Connection, pipeline: str
) -> None:
    async with front(connection, films(pipeline), options(pipeline, files_quota=1), workers=False) as door:
        key = {"Idempotency-Key": "once"}
        first = await door.http.post("/v1/videos", json={"prompt": "a red circle"}, headers=key)
        refused = await door.http.post("/v1/videos", json={"prompt": "a blue one"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (413, "quota_exceeded")
        again = await door.http.post("/v1/videos", json={"prompt": "a red circle"}, headers=key)
        assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
        await door.openai.videos.delete(first.json()["id"])
        assert (await door.http.post("/v1/videos", json={"prompt": "a blue one"})).status_code == 200


async def test_a_batch_is_refused_when_there_is_no_room_for_its_answers(connection: Connection, pipeline: str) -> None:
    async with front(connection, omni_sim(pipeline), options(pipeline, files_quota=1000), workers=False) as door:
        file = await door.openai.files.create(file=("in.jsonl", b"x" * 1000), purpose="batch")
        with pytest.raises(openai.APIStatusError) as refused:
            await door.openai.batches.create(
                input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
            )
        assert (refused.value.status_code, refused.value.code) == (413, "quota_exceeded")


async def test_a_tenant_keeps_no_other_from_the_places_of_a_front_door(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_runner, "MOST_FOLLOWED", 7)
    monkeypatch.setattr(job_runner, "MOST_OF_ONE", 2)  # and some for what other tests have left
    monkeypatch.setattr(job_runner, "_FULL_LOOK", 0.2)
    two = Options(api_keys=(pipeline, f"{pipeline}-other"))
    long = {"sampling_params": {"writer": {"tokens": 3000, "token_rate": 30.0}}}
    async with front(connection, omni_sim(pipeline), two, responses=True) as door:
        client, other = door.openai, door.openai.with_options(api_key=f"{pipeline}-other")
        flood = [await client.responses.create(input="long", background=True, extra_body=long) for _ in range(7)]
        made = await other.responses.create(input="short", background=True)

        async def is_completed() -> bool:
            return (await other.responses.retrieve(made.id)).status == "completed"

        assert await eventually(is_completed, 15.0, what="it is completed")
        for one in flood:
            await client.responses.delete(one.id)
