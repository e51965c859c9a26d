"""The dashboard in Chromium: live numbers, deaths, orders, dead letters, keys; and the playground on omni-tiny."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import pytest
from selenium.webdriver.common.keys import Keys

from tests.support.dashboard import ADMIN, EVIL, KEYS, OTHER, SHOP, USER, Page, dashboard, seconds_until
from tests.support.served import write_pipeline
from tools.browser import PHONE
from tools.serving import Serving, serving

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]
VIEWS = ("overview", "replicas", "requests", "jobs", "dead", "playground")
SEEN_WITHIN = 2.0


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A pipeline that is served under a name which would run, if it were made into elements."""
    folder = tmp_path_factory.mktemp("shop")
    file = write_pipeline(folder, SHOP)
    variables = {"OMNIBUS_API_KEYS": KEYS, "OMNIBUS_SERVED_MODEL_NAME": EVIL}
    with serving(str(file), "--port", "0", "--nats-port", "0", state_dir=folder / "state", env=variables) as server:
        yield server


@pytest.fixture
def page(shop: Serving) -> Iterator[Page]:
    with dashboard(shop.url) as made:
        yield made


def caller(shop: Serving, key: str = ADMIN) -> httpx.Client:
    return httpx.Client(base_url=shop.url, headers={"Authorization": f"Bearer {key}"}, timeout=60.0)


def ask(shop: Serving, prompt: str, key: str = USER, **fields: object) -> httpx.Response:
    body = {"model": "shop", "messages": [{"role": "user", "content": prompt}], **fields}
    with caller(shop, key) as client:
        return client.post("/v1/chat/completions", json=body)


def test_numbers_are_live_under_load(shop: Serving, page: Page) -> None:
    page.open("overview", ADMIN)
    page.until(lambda: page.figure("up") == "4 of 4", "all replicas up")
    assert (page.figure("running"), page.figure("queued")) == ("0", "0")
    with ThreadPoolExecutor(12) as threads:
        asked = [threads.submit(ask, shop, "a text of ten words, which takes its writer a second") for _ in range(12)]
        page.until(
            lambda: (page.figure("running"), int(page.figure("queued")) > 4) == ("4", True), "four run, others wait"
        )
        page.until(lambda: page.figure("rate") not in ("–", "0.0/s"), "tasks are taken")
        assert {one.result().status_code for one in asked} == {200}
    page.until(lambda: (page.figure("running"), page.figure("queued")) == ("0", "0"), "nothing is left")
    page.until(lambda: "runs 1.1" in page.text(".graph") or "runs 1.0" in page.text(".graph"), "the times of the stage")


def test_killed_replica_is_seen_within_two_seconds(shop: Serving, page: Page) -> None:
    page.open("replicas", ADMIN)
    row = '[data-key="0.r0"]'
    page.until(lambda: "up" in page.text(f"{row} .badge"), "a replica up")
    with caller(shop) as client:
        stage = client.get("/v1/cluster").json()["pipelines"][0]["stages"][0]
    pid = next(one["pid"] for one in stage["replicas"] if one["replica"] == "r0")
    assert str(pid) in page.text(row)
    os.kill(pid, signal.SIGKILL)
    seen = seconds_until(lambda: page.text(f"{row} .badge") != "up" or str(pid) not in page.text(row), 10.0)
    print(f"a killed replica was seen after {seen:.3f} s")
    assert seen < SEEN_WITHIN
    page.until(lambda: page.text(f"{row} .badge") == "up" and str(pid) not in page.text(row), "it is back", 30.0)


def test_dead_letter_is_retried_and_what_others_wrote_is_text(shop: Serving, page: Page) -> None:
    """The name of the model would run if it were made into elements."""
    failed = ask(shop, EVIL, modalities=["json"])
    assert failed.status_code == 500
    rid = failed.headers["omnibus-request-id"]
    page.open("dead", ADMIN)
    page.until(lambda: EVIL in page.text(f'[data-key="{rid}"] .facts-line'), "the dead letter, with its model")
    page.click(f'[data-key="{rid}"] [data-action="retry"]')
    page.until(lambda: "run 2" in page.text(f'[data-key="{rid}"] .facts-line'), "it has run again, and failed again")
    page.click(f'[data-key="{rid}"] [data-action="drop"]')
    page.click("#confirm")
    page.until(lambda: page.all(f'[data-key="{rid}"]') == [], "it is dropped")
    for view in VIEWS:
        page.browser.show(view)
        page.sees("main h1")
        assert page.all("img[src='x'], main script") == []
    page.browser.show("requests")
    page.until(lambda: EVIL in page.text(f'[data-key="{rid}"]'), "the request, with its model")
    assert "broken in" not in page.browser.driver.title


def test_waterfall_of_a_request_is_its_record(shop: Serving, page: Page) -> None:
    done = ask(shop, "two words", modalities=["text", "image"])
    rid = done.headers["omnibus-request-id"]
    page.open("requests", ADMIN)
    page.click(f'[data-key="{rid}"] [data-action="trace"]')
    page.until(lambda: len(page.all("#sheet .span.ran")) == 2, "a run of each stage")
    with caller(shop) as client:
        spans = client.get(f"/v1/requests/{rid}/trace").json()["spans"]
    assert [row.text.split()[:2] for row in page.all("#sheet .spans tbody tr")] == [
        [one["stage"], one["what"]] for one in spans
    ]
    page.browser.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    page.until(lambda: not page.all("#sheet[open]"), "Escape closes it")


def test_stage_is_paused_and_resumed_by_keyboard(shop: Serving, page: Page) -> None:
    page.open("overview", ADMIN)
    page.sees('.stage[data-stage="1"]')
    page.browser.script("document.querySelector('.stage[data-stage=\"1\"]').focus()")
    page.browser.driver.switch_to.active_element.send_keys(Keys.ENTER)
    page.sees(".detail h3", "1 painter")
    for words, after in (("Pause", "paused"), ("Resume", "up")):
        page.until(lambda words=words: words in page.text(".detail .actions"), f"the order {words}")
        page.browser.script("document.querySelector('.detail .actions button').focus()")
        page.browser.driver.switch_to.active_element.send_keys(Keys.SPACE)
        page.until(lambda after=after: page.text(".detail .badge") == after, f"the stage is {after}")


def test_replica_is_drained_and_resumed(shop: Serving, page: Page) -> None:
    page.open("replicas", ADMIN)
    row = '[data-key="1.r0"]'
    page.click(f'{row} [data-action="drain"]')
    page.until(lambda: page.text(f"{row} .badge") == "paused", "it is drained")
    page.click(f'{row} [data-action="resume"]')
    page.until(lambda: page.text(f"{row} .badge") == "up", "it is up")


def test_page_asks_for_a_key_and_shows_users_their_own(shop: Serving) -> None:
    own, others = ask(shop, "mine", USER), ask(shop, "not mine", OTHER)
    with dashboard(shop.url, refused=True) as page:
        page.open("requests")
        page.sees("#sheet-title", "Key").is_displayed()
        page.sees("#key").send_keys("a guess", Keys.ENTER)
        page.sees("#sheet-body", "does not know this key")
        assert page.all("main tr") == []
        page.sees("#key").send_keys(USER, Keys.ENTER)
        page.until(lambda: page.all(f'[data-key="{own.headers["omnibus-request-id"]}"]') != [], "its own request")
        page.until(lambda: page.text("#key-button") == "user", "its role")
        assert page.all(f'[data-key="{others.headers["omnibus-request-id"]}"]') == []
        page.browser.show("replicas")
        page.sees('[data-key="0.r0"]')
        assert page.all("main [data-action]") == [], "no orders for a user"
        with caller(shop) as client:
            host = client.get("/v1/cluster").json()["pipelines"][0]["stages"][0]["replicas"][0]["host"]
        assert host not in page.text()
        page.browser.show("dead")
        page.sees(".empty", "need a key of the role admin")
        orders = [("/v1/replicas/restart", {"stage_id": 0, "replica": "r0"}), ("/pause?model=shop", None),
                  ("/v1/dead_letters/any/retry", None), ("/v1/omni/sleep", {"model": "shop"})]  # fmt: skip
        assert {page.fetched("POST", path, body) for path, body in orders} == {403}
        assert page.fetched("GET", "/v1/dead_letters") == 403


def test_every_view_fits_a_phone(page: Page) -> None:
    page.browser.resize(PHONE, phone=True)
    for view in VIEWS:
        page.open(view, ADMIN)
        page.sees("main h1")
        page.until(lambda: page.text("#link-state") == "live", "live")
        assert page.browser.script("return document.documentElement.scrollWidth") <= PHONE[0], view


@pytest.fixture(scope="module")
def omni_tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("omni-tiny")
    with serving("omni-tiny", "--port", "0", "--nats-port", "0", state_dir=folder) as server:
        yield server


def test_playground_answers_in_every_modality_on_omni_tiny(omni_tiny: Serving) -> None:
    with dashboard(omni_tiny.url) as page:
        page.open("playground")
        page.write("#try-prompt", "draw a red circle left of a blue square")
        for modality in ("text", "image", "audio", "video"):
            page.click(f"label:has(#try-{modality})")
            page.click("#try-run")
            page.until(
                lambda: page.browser.script("return document.querySelector('.result').dataset.state") != "running",
                modality, 90.0,
            )  # fmt: skip
            assert page.browser.script("return document.querySelector('.result').dataset.state") == "done", page.text()
            assert _shown(page, modality), modality
        page.click(".result [data-action=trace]")
        page.until(lambda: page.all("#sheet .span.ran") != [], "the waterfall of the film")


def _shown(page: Page, modality: str) -> bool:
    """Whether the answer is there, and can be seen or heard."""
    if modality == "text":
        return {"red", "circle", "blue", "square"} <= set(page.text(".streamed").split())
    if modality == "image":
        size = "const one = document.querySelector('.picture'); return one.complete && one.naturalWidth"
        previews = page.browser.script("return document.querySelector('.answer').dataset.previews")
        return page.until(lambda: page.browser.script(size), "the picture") == 64 and int(previews or 0) >= 1
    length = f"return document.querySelector('.answer {modality}').duration || 0"
    with suppress(TypeError):
        return float(page.until(lambda: page.browser.script(length), "its length")) > 0.3
    return False
