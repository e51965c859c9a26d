"""`/v1/videos`, by the unmodified `openai` package: videos as jobs, which any front door knows and no death ends."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator

import httpx
import msgspec
import numpy as np
import openai
import pytest
import pytest_asyncio
from openai.types import Video
from PIL import Image

from omnibus.broker import delivery_loop
from omnibus.broker.bucket import Bucket
from omnibus.broker.connection import Connection
from omnibus.broker.delivery import Delivery
from omnibus.broker.delivery_loop import DeliveryLoop
from omnibus.errors import BrokerUnavailable
from omnibus.files.file_store import FileStore
from omnibus.files.keyed_ids import KeyedIds
from omnibus.frontdoor import job_runner
from omnibus.frontdoor.api_keys import read_setting
from omnibus.frontdoor.context import Options
from omnibus.frontdoor.job_records import QueuedJob
from omnibus.frontdoor.video_jobs import video_runner
from omnibus.frontdoor.video_jobs.video_record import VideoRecord
from omnibus.frontdoor.video_jobs.video_store import VideoStore
from omnibus.media import pictures
from omnibus.wire import stores, subjects
from omnibus.wire.request import Message, Request
from tests.support.filmed_text import text_of
from tests.support.filming_stages import UNFILMABLE, digest_of, films
from tests.support.front import Front, front, omni_sim
from tests.support.waiting import eventually

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning"),
]
PICTURE = pictures.encoded(np.zeros((16, 16, 3), np.uint8))
SLOWLY = {"camera": {"pause": 0.4}}


def keys(name: str) -> Options:
    """Of two tenants that have no videos yet: the store is one for all pipelines."""
    return Options(api_keys=(name, f"{name}-other"))


@pytest_asyncio.fixture
async def door(connection: Connection, pipeline: str) -> AsyncIterator[Front]:
    async with front(connection, films(pipeline), keys(pipeline), videos=True) as made:
        yield made


async def completed(door: Front, video_id: str) -> Video:
    async def found() -> Video | None:
        video = await door.openai.videos.retrieve(video_id)
        return video if video.status in ("completed", "failed") else None

    return await eventually(found, 20.0, what=f"{video_id} is completed")


async def test_video_is_made_read_in_parts_listed_and_deleted(door: Front) -> None:
    videos = door.openai.videos
    made = await videos.create_and_poll(model=door.spec.name, prompt="a red circle", poll_interval_ms=50)
    again = await videos.create_and_poll(prompt="a blue square", poll_interval_ms=50)

    assert (made.status, made.progress, made.prompt, made.error) == ("completed", 100, "a red circle", None)
    assert (made.model, made.object, made.size, made.seconds) == (door.spec.name, "video", "64x64", "0.25")
    assert made.completed_at is not None
    assert made.created_at <= made.completed_at < (made.expires_at or 0)
    content = await videos.download_content(made.id)
    assert content.response.headers["content-type"] == "video/mp4"
    assert text_of(content.content) == "a red circle"
    part = await door.http.get(f"/v1/videos/{made.id}/content", headers={"Range": "bytes=4-99"})
    assert (part.status_code, part.content) == (206, content.content[4:100])
    shown = await videos.download_content(made.id, variant="thumbnail")
    picture = Image.open(io.BytesIO(shown.content))
    assert (picture.format, picture.size) == ("WEBP", (64, 64))
    sheet = await door.http.get(f"/v1/videos/{made.id}/content", params={"variant": "spritesheet"})
    assert (sheet.status_code, sheet.json()["error"]["param"]) == (400, "variant")

    assert [video.id async for video in videos.list(limit=1)] == [again.id, made.id]
    assert [video.id async for video in videos.list(order="asc")] == [made.id, again.id]
    assert [file.purpose async for file in door.openai.files.list()] == ["video", "video"]
    gone = await videos.delete(made.id)
    assert (gone.id, gone.deleted, gone.object) == (made.id, True, "video.deleted")
    assert [video.id async for video in videos.list()] == [again.id]
    assert len([file async for file in door.openai.files.list()]) == 1
    for request in (videos.retrieve(made.id), videos.download_content(made.id), videos.delete(made.id)):
        with pytest.raises(openai.NotFoundError, match="there is no video"):
            await request


async def test_progress_and_the_time_to_look_again_come_from_the_steps(
    door: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_runner, "NOTED_EVERY", 0.1)
    body = {"prompt": "slow", "sampling_params": SLOWLY}
    video = (await door.http.post("/v1/videos", json=body)).json()
    assert (video["status"], video["progress"], video["seconds"]) == ("queued", 0, None)
    seen: list[int] = []

    async def ended() -> bool:
        answer = await door.http.get(f"/v1/videos/{video['id']}")
        status, progress = answer.json()["status"], answer.json()["progress"]
        wait = answer.headers.get("openai-poll-after-ms")
        assert (wait is None) == (status == "completed")
        if status == "in_progress":
            seen.append(progress)
            assert 250 <= int(wait or 0) <= 10_000
            early = await door.http.get(f"/v1/videos/{video['id']}/content")
            assert early.status_code == 200 or early.json()["error"]["code"] == "video_not_ready"
        return bool(status == "completed")

    await eventually(ended, 20.0, what="the video is completed")
    assert seen == sorted(seen)
    assert len(set(seen)) > 2
    assert set(seen) <= {20, 40, 60, 80, 99}


async def test_video_is_kept_by_another_front_door_when_the_first_one_dies(
    connection: Connection, pipeline: str
) -> None:
    async with front(connection, films(pipeline), keys(pipeline)) as first:  # which runs no jobs, as if it died at once
        video = await first.openai.videos.create(prompt="left behind")
        await eventually(lambda: _is_done(first, video.id), 20.0, what="the request is done")
        assert (await first.openai.videos.retrieve(video.id)).status == "queued"
    async with front(connection, films(pipeline), keys(pipeline), workers=False, videos=True) as second:
        kept = await completed(second, video.id)
        assert text_of((await second.openai.videos.download_content(kept.id)).content) == "left behind"


async def test_a_front_door_goes_on_to_follow_videos_when_its_loop_has_failed(
    connection: Connection, pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, faults = DeliveryLoop.run, iter([RuntimeError("a fault of its own")])

    async def faulty(loop: DeliveryLoop) -> None:
        fault = next(faults, None) if loop._where == "videos" else None
        if fault is not None:
            raise fault
        await run(loop)

    monkeypatch.setattr(DeliveryLoop, "run", faulty)
    async with front(connection, films(pipeline), keys(pipeline), videos=True) as door:
        made = await door.openai.videos.create(prompt="all the same")
        assert (await completed(door, made.id)).status == "completed"
    assert next(faults, None) is None


async def test_no_video_is_left_when_it_could_not_be_queued(door: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    publish = Connection.js_publish

    def without_queue(connection: Connection, subject: str, *args: object, **kwargs: object) -> object:
        if subject.startswith("omni-videos."):
            raise BrokerUnavailable("no queue")
        return publish(connection, subject, *args, **kwargs)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Connection, "js_publish", without_queue)
        answer = await door.http.post("/v1/videos", json={"prompt": "nowhere"})
    assert answer.status_code == 503
    assert [video async for video in door.openai.videos.list()] == []


async def test_video_is_made_when_its_runner_comes_before_its_record(
    door: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, nak, create = asyncio.Event(), Delivery.nak, Bucket.create

    async def noted_nak(delivery: Delivery, delay: float | None = None) -> None:
        await nak(delivery, delay)
        looked.set()

    async def late_create(bucket: Bucket, key: str, data: bytes, ttl: float | None = None) -> int:
        if bucket.name == stores.VIDEOS_BUCKET:
            await asyncio.wait_for(looked.wait(), 10.0)
        return await create(bucket, key, data, ttl)

    monkeypatch.setattr(Delivery, "nak", noted_nak)
    monkeypatch.setattr(Bucket, "create", late_create)
    video = (await door.http.post("/v1/videos", json={"prompt": "overtaken"})).json()
    assert (await completed(door, video["id"])).status == "completed"


@pytest.mark.parametrize("data", [b"no video", msgspec.msgpack.encode(QueuedJob(id="video_none", owner=None))])
async def test_message_leaves_the_queue_when_it_is_of_no_video(
    door: Front, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    monkeypatch.setattr(delivery_loop, "_RETRY", 0.01)
    monkeypatch.setattr(job_runner, "UNRECORDED", 1.0)
    connection = door.producer.connection
    stored = await connection.js_publish(subjects.queued_video(f"of-{door.spec.name}"), data)

    async def is_gone() -> bool:
        message = f"STREAM.MSG.GET.{stores.VIDEOS_STREAM}"
        return await connection.find(message, {"seq": stored.seq}) is None

    await eventually(is_gone, 20.0, what="the message has left")


async def _is_done(door: Front, rid: str) -> bool:
    return bool((await door.http.get(f"/v1/requests/{rid}")).json()["status"] == "done")


async def test_video_is_submitted_again_when_its_request_was_never_accepted_or_is_forgotten(
    door: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omnibus.frontdoor.job_runner.ADMISSION", 0.2)
    videos = VideoStore(door.producer.connection, FileStore(door.producer.connection, quota=1 << 30))
    owner = read_setting(door.spec.name).tenant
    now = videos.now()
    record = VideoRecord(
        id="", owner=owner, pipeline=door.spec.name, model=door.spec.name, prompt="orphan",
        created=now, expires=now + 3600,
    )  # fmt: skip
    request = Request(messages=(Message(role="user", content="orphan"),), modalities=("video",), tenant=owner or "")
    record, _ = await videos.begin(record, request)
    kept = await completed(door, record.id)
    assert text_of((await door.openai.videos.download_content(kept.id)).content) == "orphan"


async def test_video_fails_with_the_error_of_its_request(door: Front) -> None:
    failed = await door.openai.videos.create_and_poll(prompt=UNFILMABLE, poll_interval_ms=50)
    assert (failed.status, failed.completed_at) == ("failed", None)
    assert failed.error is not None
    assert (failed.error.code, failed.error.message) == ("engine_rejected", "nothing cannot be filmed")
    with pytest.raises(openai.ConflictError, match="it has failed: nothing cannot be filmed"):
        await door.openai.videos.download_content(failed.id)
    with pytest.raises(openai.ConflictError, match="only a completed video"):
        await door.openai.videos.remix(failed.id, prompt="else")


async def test_request_that_is_refused_leaves_no_video(connection: Connection, pipeline: str) -> None:
    spec = films(pipeline, max_open_requests=1)
    async with front(connection, spec, keys(pipeline), workers=False, idle=(omni_sim(f"{pipeline}-x"),)) as door:
        first = await door.openai.videos.create(prompt="first")
        with pytest.raises(openai.RateLimitError):
            await door.openai.videos.create(prompt="second")
        with pytest.raises(openai.BadRequestError) as unable:
            await door.openai.videos.create(prompt="third", model=f"{pipeline}-x")
        with pytest.raises(openai.BadRequestError) as empty:
            await door.openai.videos.create(prompt=" ")
        assert (unable.value.param, empty.value.param) == ("model", "prompt")
        assert [video.id async for video in door.openai.videos.list()] == [first.id]


async def test_video_is_its_owners_alone(door: Front) -> None:
    made = await door.openai.videos.create_and_poll(prompt="mine", poll_interval_ms=50)
    other = door.openai.with_options(api_key=f"{door.spec.name}-other").videos
    assert [video async for video in other.list()] == []
    for refused in (
        other.retrieve(made.id), other.download_content(made.id), other.delete(made.id),
        other.remix(made.id, prompt="theirs"), other.retrieve("video_x"),
    ):  # fmt: skip
        with pytest.raises(openai.NotFoundError):
            await refused


async def test_the_same_idempotency_key_makes_one_video(door: Front) -> None:
    body, key = {"prompt": "once"}, {"Idempotency-Key": f"{door.spec.name}-1"}
    answers = await asyncio.gather(*(door.http.post("/v1/videos", json=body, headers=key) for _ in range(4)))
    other = await door.http.post("/v1/videos", json={"prompt": "twice"}, headers=key)
    assert {answer.status_code for answer in answers} == {200}
    (video_id,) = {answer.json()["id"] for answer in answers}
    assert (other.status_code, other.json()["error"]["code"]) == (409, "request_conflict")
    assert (await completed(door, video_id)).status == "completed"
    assert (await door.http.post("/v1/videos", json=body, headers=key)).json()["status"] == "completed"
    assert [video.id async for video in door.openai.videos.list()] == [video_id]


async def test_idempotency_key_of_a_deleted_video_makes_a_new_one(door: Front) -> None:
    body, key = {"prompt": "once", "sampling_params": SLOWLY}, {"Idempotency-Key": f"{door.spec.name}-1"}
    first = (await door.http.post("/v1/videos", json=body, headers=key)).json()
    await door.openai.videos.delete(first["id"])
    second = (await door.http.post("/v1/videos", json={"prompt": "anew"}, headers=key)).json()
    again = (await door.http.post("/v1/videos", json={"prompt": "anew"}, headers=key)).json()
    assert first["id"] != second["id"] == again["id"]
    assert (await completed(door, second["id"])).status == "completed"


async def test_idempotency_key_makes_a_new_video_when_its_own_is_deleted_in_the_same_moment(
    door: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deletion comes between the look at the key and the one at the video: that would be made anew under its old id."""
    body, key = {"prompt": "once"}, {"Idempotency-Key": f"{door.spec.name}-1"}
    first = (await door.http.post("/v1/videos", json=body, headers=key)).json()
    found, real = list[str](), KeyedIds.id_for

    async def slowly(self: KeyedIds, token: str, made: str, ttl: float) -> str:
        found.append(await real(self, token, made, ttl))
        if len(found) == 1:
            await door.openai.videos.delete(first["id"])
        return found[-1]

    monkeypatch.setattr(KeyedIds, "id_for", slowly)
    second = (await door.http.post("/v1/videos", json=body, headers=key)).json()
    again = (await door.http.post("/v1/videos", json=body, headers=key)).json()
    assert found == [first["id"], second["id"], second["id"]]
    assert first["id"] != second["id"] == again["id"]
    assert (await completed(door, second["id"])).status == "completed"
    assert [video.id async for video in door.openai.videos.list()] == [second["id"]]


async def test_picture_comes_as_a_file_or_by_its_id_and_stays_in_a_remix(door: Front) -> None:
    videos, stored = door.openai.videos, await door.openai.files.create(file=("a.png", PICTURE), purpose="vision")
    made = await videos.create_and_poll(
        prompt="look", input_reference=("a.png", PICTURE, "image/png"), poll_interval_ms=50
    )
    body = {"prompt": "look"}
    as_json = await door.http.post("/v1/videos", json={**body, "input_reference": {"file_id": stored.id}})
    as_form = await door.http.post(
        "/v1/videos",
        files=[(name, (None, value)) for name, value in {**body, "input_reference[file_id]": stored.id}.items()],
    )
    unknown = await door.http.post("/v1/videos", json={**body, "input_reference": {"file_id": "file-none"}})
    twofold = {"file_id": stored.id, "image_url": "data:image/png;base64,aaaa"}
    both = await door.http.post("/v1/videos", json={**body, "input_reference": twofold})
    by_id = [await completed(door, answer.json()["id"]) for answer in (as_json, as_form)]
    remixed = await videos.remix(made.id, prompt="and see")
    remixed = await completed(door, remixed.id)

    assert (unknown.status_code, unknown.json()["error"]["param"]) == (404, "input_reference.file_id")
    assert (both.status_code, both.json()["error"]["param"]) == (400, "input_reference")
    assert remixed.remixed_from_video_id == made.id
    shown = [text_of((await videos.download_content(one.id)).content) for one in (made, *by_id, remixed)]
    assert shown == [*[f"look {digest_of(PICTURE)}"] * 3, f"and see {digest_of(PICTURE)}"]


async def test_deleting_a_video_cancels_what_still_makes_it(door: Front) -> None:
    video = (await door.http.post("/v1/videos", json={"prompt": "long", "sampling_params": SLOWLY})).json()
    await door.openai.videos.delete(video["id"])
    request = await door.http.get(f"/v1/requests/{video['id']}")
    assert request.json()["status"] == "cancelled"
    assert [one async for one in door.openai.videos.list()] == []


@pytest.mark.parametrize(
    ("query", "param"), [({"limit": 0}, "limit"), ({"order": "up"}, "order"), ({"after": "x"}, "after")]
)
async def test_list_is_refused_when_it_is_asked_for_wrongly(
    door: Front, query: dict[str, str | int], param: str
) -> None:
    refused: httpx.Response = await door.http.get("/v1/videos", params=query)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
