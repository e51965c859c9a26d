"""Every route is driven by the `openai` package, or has a test of its own that is named."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from starlette.routing import BaseRoute, Route, WebSocketRoute

from omnibus.frontdoor.app import create_app
from tests.support.front import FixedPipelines, nobody
from tests.support.http_routes import ELSEWHERE, OURS
from tests.support.openai_calls import CALLS

pytestmark = pytest.mark.unit
TESTS = Path(__file__).parents[1]
APP = create_app(None, FixedPipelines(), replicas=nobody, connected=lambda: True)  # type: ignore[arg-type]


def routes_of(routes: Iterable[BaseRoute]) -> set[str]:
    """Those that are ours: FastAPI's own have the documentation."""
    found = {f"WS {route.path}" for route in routes if isinstance(route, WebSocketRoute)}
    ours = [
        route for route in routes if isinstance(route, Route) and (route.name != "openapi" and "doc" not in route.path)
    ]
    return found | {f"{method} {route.path}" for route in ours for method in (route.methods or set()) - {"HEAD"}}


def test_every_route_is_driven_by_the_openai_package_or_is_ours() -> None:
    driven = {call.route for call in CALLS} | set(ELSEWHERE)
    assert driven.isdisjoint(OURS)
    assert routes_of(APP.routes) - {"GET /docs", "GET /redoc"} == driven | set(OURS)


@pytest.mark.parametrize("named", sorted({*ELSEWHERE.values(), *OURS.values()}))
def test_the_test_of_a_route_exists(named: str) -> None:
    file, _, name = named.partition("::")
    source = (TESTS / file).read_text()
    assert f"def {name}(" in source if name else "def test_" in source


@pytest.mark.parametrize("named", sorted(ELSEWHERE.values()))
def test_routes_that_are_driven_elsewhere_are_driven_by_the_package(named: str) -> None:
    assert "openai" in (TESTS / named.partition("::")[0]).read_text().lower()
