"""API keys: what is kept of them, who may reach what, and changes while a front door runs."""

from __future__ import annotations

import json
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fastapi.routing import APIRoute
from starlette.routing import Match, Mount, Route, WebSocketRoute

from omnibus.cli import cli, main
from omnibus.errors import ConfigError
from omnibus.frontdoor import api_keys
from omnibus.frontdoor.access import AccessTable, ApiKeys, RouteAccess, bearer, stated_access
from omnibus.frontdoor.api_keys import KeyFile, KeyTable, Role, hashed_setting, read_setting
from omnibus.frontdoor.app import create_app
from omnibus.frontdoor.image_links import LINK_PATH
from omnibus.settings import Settings, inherited_environment
from tests.support.front import FixedPipelines, nobody

pytestmark = pytest.mark.unit


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "state" / "keys.json")


@pytest.fixture
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_keys, "RELOAD_INTERVAL", -1.0)


async def ask(
    middleware: ApiKeys, path: str, token: str | None = None, *, kind: str = "http"
) -> tuple[int, dict[str, Any]]:
    """The status that a caller sees (101 for an accepted websocket), and its state behind the middleware."""
    extensions: dict[str, Any] = {"websocket.http.response": {}}
    scope: dict[str, Any] = {"type": kind, "path": path, "headers": [], "method": "GET", "extensions": extensions}
    if token is not None:
        scope["headers"] = [(b"authorization", f"Bearer {token}".encode())]
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": f"{kind}.connect" if kind == "websocket" else "http.request"}

    await middleware(scope, receive, send)
    first = sent[0]
    status = first.get("status", 101 if first["type"] == "websocket.accept" else 403)
    return status, scope["state"]


async def inner(scope: Any, _receive: Any, send: Any) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
    else:
        await send({"type": "http.response.start", "status": 200, "headers": []})


APP = create_app(None, FixedPipelines(), replicas=nobody, connected=lambda: True)  # type: ignore[arg-type]


def guarded(settings: Sequence[str] = (), file: Path | None = None, closed: Sequence[str] = ()) -> ApiKeys:
    return ApiKeys(inner, KeyTable(settings, file), closed, AccessTable(APP.routes))


KEYS = ("user-key", "admin:admin-key")


@pytest.mark.parametrize(
    ("path", "stranger", "user", "admin"),
    [
        ("/live", 200, 200, 200),
        ("/ready", 200, 200, 200),
        ("/metrics", 200, 200, 200),
        ("/docs", 200, 200, 200),
        ("/ui", 200, 200, 200),
        ("/ui/app.js", 200, 200, 200),
        ("/v1/cluster", 401, 200, 200),
        ("/v1/cluster/events", 401, 200, 200),
        ("/v1/requests", 401, 200, 200),
        ("/v1/requests/abc/trace", 401, 200, 200),
        ("/v1/dead_letters", 401, 403, 200),
        ("/v1/dead_letters/abc", 401, 403, 200),
        ("/v1/dead_letters/abc/retry", 401, 403, 200),
        ("/v1/replicas/drain", 401, 403, 200),
        ("/v1/replicas/resume", 401, 403, 200),
        ("/v1/replicas/restart", 401, 403, 200),
        ("/v1/chat/completions", 401, 200, 200),
        ("/v1/requests/abc", 401, 200, 200),
        ("/is_paused", 401, 200, 200),
        ("/pause", 401, 403, 200),
        ("/resume", 401, 403, 200),
        ("/start_profile", 401, 403, 200),
        ("/stop_profile", 401, 403, 200),
        ("/reset_prefix_cache", 401, 403, 200),
        ("/v1/omni/sleep", 401, 403, 200),
        ("/v1/omni/wakeup", 401, 403, 200),
        ("/something/new", 401, 200, 200),
        ("//v1/models", 401, 200, 200),
    ],
)
async def test_an_address_asks_for_a_key_of_its_role(path: str, stranger: int, user: int, admin: int) -> None:
    middleware = guarded(KEYS)
    seen = [(await ask(middleware, path, token))[0] for token in ("guess", "user-key", "admin-key")]
    assert seen == [stranger, user, admin]
    assert (await ask(middleware, path))[0] == stranger


def test_every_route_states_its_access() -> None:
    stated: dict[RouteAccess, set[str]] = {access: set() for access in RouteAccess}
    for route in APP.routes:
        assert isinstance(route, Route | Mount | WebSocketRoute)
        stated[stated_access(route)].add(route.path)
    assert stated[RouteAccess.OPEN] == {"/live", "/health", "/ready", "/version", "/docs-assets", LINK_PATH}
    assert stated[RouteAccess.METRICS] == {"/metrics"}
    assert stated[RouteAccess.DOCS] == {"/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"}
    posts = {route.path for route in APP.routes if isinstance(route, APIRoute) and "POST" in route.methods}
    asking = {"/tokenize", "/detokenize", "/score", "/rerank", "/v2/rerank"}
    assert asking < stated[RouteAccess.USER]
    assert {path for path in posts - asking if not path.startswith("/v1/")} < stated[RouteAccess.ADMIN], (
        "these change what replicas do"
    )
    assert stated[RouteAccess.UI] == {"/ui", "/ui/{name}"}
    assert stated[RouteAccess.ADMIN] - posts == {"/v1/dead_letters", "/v1/dead_letters/{request_id}"}, "of all tenants"


@pytest.mark.parametrize("change", ["{}\n", "{}/", "/{}", "{}%0A", "{} ", "{}\r\n", "{}\x00"])
def test_an_address_that_a_route_takes_asks_for_the_key_of_that_route(change: str) -> None:
    table, taken = AccessTable(APP.routes), set[str]()
    for stated in APP.routes:
        assert isinstance(stated, Route | Mount | WebSocketRoute)
        path = change.format(stated.path)
        for route in APP.routes:
            kind = "websocket" if isinstance(stated, WebSocketRoute) else "http"
            scope = {"type": kind, "path": path, "method": next(iter(getattr(stated, "methods", None) or ("GET",)))}
            if route.matches(scope)[0] is not Match.NONE:
                assert isinstance(route, Route | Mount | WebSocketRoute)
                assert table.access(path) >= stated_access(route), path
                taken.add(path)
    assert ("/pause\n" in taken) == (change == "{}\n"), "what this is about"


def test_a_route_that_states_no_access_is_refused_at_the_start() -> None:
    with pytest.raises(TypeError, match="/v1/new"):
        AccessTable([*APP.routes, APIRoute("/v1/new", inner)])


async def test_an_admins_route_asks_for_its_key_when_its_address_has_a_parameter_or_another_route() -> None:
    routes = [
        APIRoute("/v1/things", inner, methods=["GET"], openapi_extra=RouteAccess.USER.stated),
        APIRoute("/v1/things", inner, methods=["POST"], openapi_extra=RouteAccess.ADMIN.stated),
        APIRoute("/v1/things/mine", inner, openapi_extra=RouteAccess.OPEN.stated),
        APIRoute("/v1/things/{name}", inner, methods=["DELETE"], openapi_extra=RouteAccess.ADMIN.stated),
    ]
    middleware = ApiKeys(inner, KeyTable(KEYS), (), AccessTable(routes))
    for path in ("/v1/things", "/v1/things/one", "/v1/things/mine"):
        assert [(await ask(middleware, path, token))[0] for token in ("user-key", "admin-key")] == [403, 200]


async def test_a_websocket_is_refused_without_a_key() -> None:
    middleware = guarded(KEYS)
    for token in (None, "guess", "sha256:" + read_setting("user-key").sha256, ""):
        assert (await ask(middleware, "/v1/realtime", token, kind="websocket"))[0] == 401
    assert (await ask(middleware, "/v1/realtime", "user-key", kind="websocket"))[0] == 101


async def test_pages_can_be_closed_with_and_without_keys() -> None:
    for page in ("/metrics", "/docs", "/openapi.json", "/redoc", "/ui"):
        assert (await ask(guarded(), page))[0] == 200
        assert (await ask(guarded(closed=("metrics", "docs", "ui")), page))[0] == 401
    closed = guarded(KEYS, closed=("metrics", "docs", "ui"))
    assert [(await ask(closed, "/metrics", token))[0] for token in ("user-key", "admin-key")] == [403, 200]
    assert (await ask(closed, "/openapi.json", "user-key"))[0] == 200


async def test_the_state_names_tenant_and_role() -> None:
    _, state = await ask(guarded(KEYS), "/v1/models", "admin-key")
    assert (state["role"], state["tenant"]) == (Role.ADMIN, read_setting("admin-key").tenant)
    _, state = await ask(guarded(), "/v1/models", "whatever")
    assert (state["role"], state["tenant"]) == (Role.USER, None)


@pytest.mark.usefixtures("_at_once")
async def test_a_key_works_from_its_making_to_its_revocation_while_the_front_door_runs(file: KeyFile) -> None:
    middleware = guarded(file=file.path)
    assert (await ask(middleware, "/v1/models"))[0] == 200, "no key is asked for before there is one"
    first, second = file.add("one", Role.USER), file.add("two", Role.ADMIN)
    assert [(await ask(middleware, "/pause", token))[0] for token in (None, first, second)] == [401, 403, 200]
    file.revoke("two")
    assert [(await ask(middleware, "/v1/models", token))[0] for token in (first, second)] == [200, 401]
    file.revoke("one")
    assert (await ask(middleware, "/v1/models"))[0] == 401, "without any key left everybody is refused"
    file.path.unlink()
    assert (await ask(middleware, "/v1/models"))[0] == 401, "a file that is lost opens nothing"


@pytest.mark.usefixtures("_at_once")
async def test_known_keys_stay_when_the_file_becomes_unreadable(file: KeyFile) -> None:
    key = file.add("one", Role.USER)
    middleware = guarded(file=file.path)
    file.path.write_text("[{")
    assert [(await ask(middleware, "/v1/models", token))[0] for token in (key, "guess")] == [200, 401]
    with pytest.raises(ConfigError, match=r"keys\.json"):
        KeyTable(file=file.path)


def test_the_file_holds_no_key_and_is_its_owners_alone(file: KeyFile) -> None:
    key = file.add("one", Role.USER)
    assert key not in file.path.read_text()
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    with pytest.raises(ConfigError, match="one"):
        file.add("one", Role.ADMIN)
    with pytest.raises(ConfigError, match="nobody"):
        file.revoke("nobody")
    assert [entry["name"] for entry in json.loads(file.path.read_text())] == ["one"]


def test_keys_are_added_listed_and_revoked_on_the_command_line(tmp_path: Path) -> None:
    def run(*words: str) -> str:
        done = CliRunner().invoke(cli, ["keys", *words, "--state-dir", str(tmp_path)])
        assert done.exit_code == 0, done.output
        return done.output

    assert "no keys" in run("list")
    added = CliRunner().invoke(cli, ["keys", "add", "alice", "--role", "admin", "--state-dir", str(tmp_path)])
    key = added.stdout.strip()
    assert key.startswith("omnibus-"), "a script reads the key alone"
    assert f"front doors that read {tmp_path}/api-keys.json take it within a second, running ones too" in added.stderr
    assert "every caller needs a key" in added.stderr
    (listed,) = run("list").splitlines()
    assert listed.split("\t")[:2] == ["alice", "admin"]
    assert key not in listed
    found = KeyTable(file=Settings(state_dir=tmp_path).keys_path).find(key)
    assert found is not None
    assert found.role is Role.ADMIN
    assert f"no key is left: every request is refused; to ask for none, remove {tmp_path}/api-keys.json" in run(
        "revoke", "alice"
    )
    assert "every request is refused" in run("list")


@pytest.mark.parametrize("command", ["serve", "frontdoor"])
def test_no_key_can_stand_on_a_command_line(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--api-key", "secret"])
    said = capsys.readouterr().err
    assert (caught.value.code, "--api-key" in said, "secret" in said) == (2, True, False)


@pytest.mark.parametrize("text", ["secret", "user:secret", "admin:secret", "admin:a:b", "sha256:" + "0" * 64])
def test_a_key_goes_to_a_child_as_its_hash(text: str) -> None:
    passed = hashed_setting(text)
    assert "secret" not in passed
    assert read_setting(passed) == read_setting(text)
    assert hashed_setting(passed) == passed


def test_children_do_not_inherit_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNIBUS_API_KEYS", "secret")
    monkeypatch.setenv("OMNIBUS_HOST", "::1")
    env = inherited_environment()
    assert "OMNIBUS_API_KEYS" not in env
    assert env["OMNIBUS_HOST"] == "::1"


@pytest.mark.parametrize(
    ("header", "token"), [("Bearer two", "two"), ("bearer  two ", "two"), ("Basic two", ""), (None, ""), ("Bearer", "")]
)
def test_the_token_is_the_bearers(header: str | None, token: str) -> None:
    assert bearer(header) == token
