"""Pages of other sites in Chromium, at a front door without keys: what they have the browser send changes nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from selenium.webdriver.support.wait import WebDriverWait

from tests.support.dashboard import SHOP
from tests.support.served import write_pipeline
from tools.browser import Browser, chromium
from tools.serving import Serving, serving

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]
WAYS = {
    "a form": """
        const done = arguments[1], form = document.createElement("form"), frame = document.createElement("iframe");
        frame.name = "hidden"; document.body.append(frame, form);
        form.method = "post"; form.action = arguments[0]; form.target = "hidden";
        form.submit(); setTimeout(() => done("sent"), 500);""",
    "fetch": """
        const done = arguments[1];
        fetch(arguments[0], {method: "POST", mode: "no-cors", body: "x"}).then(() => done("sent"), (e) => done(String(e)));""",
    "a beacon": """
        const done = arguments[1]; navigator.sendBeacon(arguments[0], "x"); setTimeout(() => done("sent"), 500);""",
}
"""Ways in which a page has its visitor's browser send a POST anywhere, without asking the server first."""


class _Evil(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><body>Free kittens")

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def other_site() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Evil) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("shop")
    with serving(
        str(write_pipeline(folder, SHOP)), "--port", "0", "--nats-port", "0", state_dir=folder / "state"
    ) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium("--host-resolver-rules=MAP evil.example 127.0.0.1") as made:
        yield made


def is_paused(shop: Serving) -> bool:
    return bool(httpx.get(f"{shop.url}/is_paused").json()["is_paused"])


def refusals(shop: Serving) -> float:
    """Requests that were refused so far, as the server counts them."""
    lines = httpx.get(f"{shop.url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if "http_requests_total" in line and 'status="403"' in line)


def send(browser: Browser, way: str, url: str) -> str:
    browser.driver.set_script_timeout(20)
    return str(browser.driver.execute_async_script(WAYS[way], url))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("page", ["127.0.0.1", "localhost", "evil.example"])
def test_page_of_another_site_pauses_nothing(shop: Serving, browser: Browser, page: str, way: str) -> None:
    port = httpx.URL(shop.url).port
    with other_site() as evil:
        browser.driver.get(f"http://{page}:{evil}/")
        for host in ("localhost", "127.0.0.1"):
            before = refusals(shop)
            assert send(browser, way, f"http://{host}:{port}/pause") == "sent"
            WebDriverWait(browser.driver, 10).until(lambda _, known=before: refusals(shop) > known, "it arrived")  # type: ignore[misc]
    assert not is_paused(shop)
    assert httpx.get(f"{shop.url}/v1/models").status_code == 200


def test_page_whose_name_leads_here_later_reads_and_changes_nothing(shop: Serving, browser: Browser) -> None:
    rebound = f"http://evil.example:{httpx.URL(shop.url).port}"
    browser.driver.get(f"{rebound}/v1/cluster")
    assert "unknown_host" in browser.driver.page_source
    assert send(browser, "fetch", f"{rebound}/pause") == "sent"
    assert not is_paused(shop)


def test_own_page_gives_orders(shop: Serving, browser: Browser) -> None:
    browser.open(shop.url.replace("127.0.0.1", "localhost"))
    for order, wanted in (("/pause", True), ("/resume", False)):
        assert send(browser, "fetch", order) == "sent"
        WebDriverWait(browser.driver, 10).until(lambda _, now=wanted: is_paused(shop) is now)  # type: ignore[misc]
