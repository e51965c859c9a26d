"""Tables of the reference against the code: a setting, a metric, a route, a code or a command that has no row fails here."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from starlette.routing import Mount, Route, WebSocketRoute

from omnibus import errors
from omnibus.broker.roles import NatsRole
from omnibus.cli import COMMANDS
from omnibus.frontdoor.app import create_app
from omnibus.observability.metrics import Metrics
from omnibus.pipeline.engines import BUILT_IN, EngineKind
from omnibus.pipeline.spec import EdgeSpec, PipelineSpec, StageSpec
from omnibus.settings import Settings
from omnibus.workers.engines.protocol import Engine
from tests.support.front import FixedPipelines, nobody

pytestmark = pytest.mark.unit

DOCS = Path(__file__).parents[2] / "docs"
UNNAMED_ROUTES = {"/docs/oauth2-redirect", "/docs-assets", "/openapi.json", "/v1/realtime/{what:path}"}
"""Parts of the pages `/docs` and `/redoc`, and what refuses the parts of Realtime that there are not."""


def page(name: str) -> str:
    return (DOCS / f"{name}.md").read_text()


def named(text: str) -> set[str]:
    """The words between backticks."""
    return {word for code in re.findall(r"`([^`\n]+)`", text) for word in re.findall(r"[\w./{}-]+", code)}


def rows(text: str, first: str) -> str:
    """The rows of the tables whose head begins with a cell."""
    found = re.findall(rf"^\| {re.escape(first)} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert found, f"there is no table {first}"
    return "".join(found)


def test_every_setting_has_a_row_and_every_row_a_setting() -> None:
    text = page("guide/serving").partition("## Settings")[2] + page("reference/http")
    stated = {name for name in named(text) if re.fullmatch(r"OMNIBUS_[A-Z_]+", name)}
    settings = {f"OMNIBUS_{name.upper()}" for name in Settings.model_fields}
    assert settings - stated == set(), "docs/guide/serving.md, Settings"
    assert stated - settings == {"OMNIBUS_CACHE_DIR"}, "read by itself"


def test_every_metric_has_a_row_and_every_row_a_metric() -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    suffix = {"counter": "_total"}
    made = {f"{one.name}{suffix.get(one.type, '')}".removeprefix("omnibus_") for one in registry.collect()}
    table = rows(page("guide/serving"), "metric, behind `omnibus_`")
    stated = {name for line in table.splitlines() for name in named(line.split("|")[1])}
    assert (made - stated, stated - made) == (set(), set()), "docs/guide/serving.md, Watching"


def test_every_route_is_in_its_table() -> None:
    app = create_app(None, FixedPipelines(), replicas=nobody, connected=lambda: True)  # type: ignore[arg-type]
    text = page("reference/http")
    missing = [
        route.path
        for route in app.routes
        if isinstance(route, Route | Mount | WebSocketRoute) and route.path not in UNNAMED_ROUTES
        if not _states(text, route.path)
    ]
    assert missing == [], "docs/reference/http.md"


def _states(text: str, path: str) -> bool:
    """Whether a page names a path; parameters have short names there, and `/v1` is said once of those that have both."""
    wanted = re.sub(r"\\{\w+(?::\w+)?\\}", r"\\{\\w+\\}", re.escape(path.removeprefix("/v1") or path))
    return re.search(rf"(?:`|/v1|, |GET |POST |DELETE ){wanted}[`?, ]", text) is not None


def test_every_error_that_a_caller_sees_is_in_its_table() -> None:
    """What only the command line says (configuration) and what is a worker's own affair need no row."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.OmnibusError)]
    inside = (errors.ConfigError, errors.BrokerError, errors.Unreadable)
    seen = {kind for kind in kinds if not issubclass(kind, inside) and not kind.__subclasses__()} | {
        errors.BrokerUnavailable
    }
    table = rows(page("reference/http").partition("## Errors")[2], "status")
    statuses = {code: int(line.split("|")[1]) for line in table.splitlines() for code in named(line)}
    assert {kind.code: kind.http_status for kind in seen} == {kind.code: statuses.get(kind.code) for kind in seen}


def test_every_command_is_in_its_table() -> None:
    table = rows(page("reference/cli"), "command")
    assert {name for name in COMMANDS if not re.search(rf"`{name}\b", table)} == set(), "docs/reference/cli.md"


def test_every_role_is_in_its_table() -> None:
    assert {role.value for role in NatsRole} - named(rows(page("reference/security"), "role")) == set()


@pytest.mark.parametrize("kind", [PipelineSpec, StageSpec, EdgeSpec])
def test_every_field_of_a_pipeline_is_on_its_page(kind: type) -> None:
    declared = set(kind.__struct_fields__)  # type: ignore[attr-defined]
    assert declared - named(page("reference/pipelines")) == set()


def test_every_field_of_an_engines_entry_and_every_method_is_on_its_page() -> None:
    text = page("guide/engines")
    assert {field.name for field in fields(EngineKind)} - named(text) - {"factory"} == set(), "docs/guide/engines.md"
    methods = {name for name in (*vars(Engine), *Engine.__annotations__) if not name.startswith("_")}
    assert methods - named(text) == set(), "docs/guide/engines.md"
    assert {one.name for one in BUILT_IN if one.name != "sim"} <= named(
        page("reference/engines") + page("guide/own-model")
    )
