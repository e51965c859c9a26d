"""How long files, images, videos, responses and answers of batches are kept: by request, by route and by key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest

from omnibus.broker.connection import Connection
from omnibus.files.tenant_usage import TenantUsage
from omnibus.frontdoor.api_keys import KeyFile, KeyTable, Role
from omnibus.frontdoor.context import Options
from omnibus.frontdoor.responses.response_store import ResponseStore
from tests.support.batches import begun, chat, ended
from tests.support.filming_stages import films
from tests.support.front import front, omni_sim

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning"),
]
ROUTES: dict[str, Any] = {
    "keep_files": 7200.0, "keep_videos": 5000.0, "keep_responses": 4500.0, "keep_batch_outputs": 6000.0,
    "image_link_lifetime": 4000.0,
}  # fmt: skip


@pytest.mark.parametrize("keep", [None, 600.0], ids=["by the route", "by the key"])
async def test_what_a_caller_stores_is_kept_as_its_route_and_its_key_say(
    connection: Connection, pipeline: str, tmp_path: Path, keep: float | None
) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    key = keys.add("mobile", Role.USER, keep)
    options = Options(api_keys_file=keys.path, **ROUTES)
    found = {}
    async with front(connection, omni_sim(pipeline), options, batches=True) as door:
        client = door.openai.with_options(api_key=key)
        file = await client.files.create(file=("a.txt", b"a"), purpose="user_data")
        found["keep_files"] = (file.expires_at or 0) - file.created_at
        await client.images.generate(model=pipeline, prompt="a cat", response_format="url")
        (image,) = [one async for one in client.files.list(purpose="image")]
        found["image_link_lifetime"] = (image.expires_at or 0) - image.created_at
        response = await client.responses.create(input="hi")
        tenant = KeyTable((), keys.path).find(key)
        assert tenant is not None
        record = await ResponseStore(connection, TenantUsage(0)).find(tenant.tenant, response.id)
        found["keep_responses"] = record.expires - record.created
        if keep is None:  # of a shorter key, the input would be gone before the window is over
            batch = await ended(client, await begun(client, [chat(pipeline, "a", "hi")], window="30s"))
            output = await client.files.retrieve(str(batch.output_file_id))
            found["keep_batch_outputs"] = (output.expires_at or 0) - output.created_at
    async with front(connection, films(f"{pipeline}-films"), options, workers=False) as camera:
        video = await camera.openai.with_options(api_key=key).videos.create(prompt="a red circle")
        found["keep_videos"] = (video.expires_at or 0) - video.created_at
    assert found == {name: ROUTES[name] if keep is None else keep for name in found}


async def test_a_request_asks_for_less_than_its_route_and_for_no_more_than_its_key(
    connection: Connection, pipeline: str, tmp_path: Path
) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    free, bound = keys.add("free", Role.USER), keys.add("bound", Role.USER, 5000.0)
    hours: Any = [{"anchor": "created_at", "seconds": hour * 3600} for hour in (1, 2)]
    async with front(
        connection, omni_sim(pipeline), Options(api_keys_file=keys.path, keep_files=3600.0), workers=False
    ) as door:

        async def kept(key: str, expires_after: Any) -> int:
            file = await door.openai.with_options(api_key=key).files.create(
                file=("a.txt", b"a"), purpose="user_data", expires_after=expires_after
            )
            return (file.expires_at or 0) - file.created_at

        assert [await kept(key, hours[0]) for key in (free, bound)] == [3600, 3600]
        assert await kept(free, hours[1]) == 7200
        with pytest.raises(openai.BadRequestError, match="5000 seconds at most") as refusal:
            await kept(bound, hours[1])
    assert refusal.value.param == "expires_after[seconds]"
