"""The files of the dashboard: served whole, kept by browsers until they change, and bound to load nothing from elsewhere."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from omnibus.frontdoor.app import create_app
from tests.support.front import FixedPipelines, nobody

pytestmark = pytest.mark.unit

FOLDER = Path(__file__).parents[2] / "omnibus" / "frontdoor" / "ui"
FILES = sorted(path.name for path in FOLDER.iterdir())


@pytest_asyncio.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(None, FixedPipelines(), replicas=nobody, connected=lambda: True)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://door") as made:
        yield made


@pytest.mark.parametrize("path", ["/ui", "/ui/", "/ui/index.html"])
async def test_page_allows_nothing_from_elsewhere(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert (policy["default-src"], policy["script-src"], policy["connect-src"]) == ("'none'", "'self'", "'self'")
    assert {word for words in policy.values() for word in words.split()} == {"'none'", "'self'", "data:", "blob:"}
    assert (answer.headers["x-content-type-options"], answer.headers["referrer-policy"]) == ("nosniff", "no-referrer")


@pytest.mark.parametrize("name", FILES)
async def test_every_file_is_served_with_its_type_and_kept_until_it_changes(
    client: httpx.AsyncClient, name: str
) -> None:
    answer = await client.get(f"/ui/{name}")
    kind = {"js": "text/javascript", "css": "text/css", "html": "text/html", "svg": "image/svg+xml"}[name.split(".")[1]]
    assert answer.content == (FOLDER / name).read_bytes()
    assert answer.headers["content-type"].startswith(kind)
    assert answer.headers["cache-control"] == "no-cache"
    again = await client.get(f"/ui/{name}", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", ["__init__.py", "..%2fapp.py", "%2e%2e/app.py", "index.html%00", "nothing.js"])
async def test_nothing_else_is_served(client: httpx.AsyncClient, name: str) -> None:
    assert (await client.get(f"/ui/{name}")).status_code == 404


@pytest.mark.parametrize("name", FILES)
def test_files_name_only_each_other_and_make_no_elements_of_text(name: str) -> None:
    text = (FOLDER / name).read_text()
    addresses = set(re.findall(r"[a-z]+://[^\s\"'`]+", text)) - {"http://www.w3.org/2000/svg"}
    assert addresses == set(), "another host"
    forbidden = ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", " style=")
    assert [word for word in forbidden if word in text] == []
    used = set(re.findall(r"/ui/([a-z_]+\.[a-z]+)", text))
    assert used <= set(FILES), "a file that is not there"
