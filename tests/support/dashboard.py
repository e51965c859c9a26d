"""The dashboard in Chromium: a pipeline to look at, and what a test asks of a page."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit

from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from tools.browser import Browser, chromium

T = TypeVar("T")
ADMIN, USER, OTHER = "dashboard-admin", "dashboard-user", "dashboard-other"
KEYS = f"admin:{ADMIN},user:{USER},user:{OTHER}"
SHOP = """
name: shop
deadline: 60s
heartbeat_timeout: 2s
max_attempts: 1
stages:
- {stage_id: 0, name: writer, engine: sim, num_replicas: 2, slots: 2, final_output: true, final_output_type: text,
   engine_args: {outputs: {text: text}, token_rate: 10}}
- {stage_id: 1, name: painter, engine: sim, slots: 4, input_sources: [0], final_output: true, final_output_type: image,
   on_demand: true, engine_args: {outputs: {image: image}, steps: 4, latency: 0.2}}
- {stage_id: 2, name: raiser, engine: python, model: "tests.support.raising_stage:answer", final_output: true,
   final_output_type: json, on_demand: true, engine_args: {outputs: {json: json}}}
"""
"""Texts that come ten words a second, four at a time; and what fails with its prompt for a message."""
EVIL = "<img src=x onerror=\"document.title='broken in'\">"
"""A text that would run, were it made into elements."""


class Page:
    """A page of the dashboard of one front door. What it waits for comes within `timeout` seconds, or the test fails."""

    def __init__(self, browser: Browser, url: str) -> None:
        self.browser, self.url = browser, url

    def open(self, view: str, key: str | None = None) -> None:
        """Load a view anew; with a `key`, as a tab in which that was entered."""
        if key is not None:
            self.browser.before_each_page(
                f"if (location.protocol === 'http:') sessionStorage.setItem('omnibus-key', {json.dumps(key)})"
            )
        self.browser.open(self.url, view)

    def until(self, found: Callable[[], T | None], what: str, timeout: float = 10.0) -> T:
        """The first value of `found` that is one."""
        waiting = WebDriverWait(
            self.browser.driver, timeout, poll_frequency=0.05, ignored_exceptions=[StaleElementReferenceException]
        )
        value: T = waiting.until(lambda _driver: found(), what)
        return value

    def sees(self, selector: str, words: str = "", timeout: float = 10.0) -> WebElement:
        """The first element of this selector that has these words, once there is one."""
        return self.until(
            lambda: next((one for one in self.all(selector) if words in one.text), None), f"{selector}: {words}", timeout
        )  # fmt: skip

    def all(self, selector: str) -> list[WebElement]:
        return self.browser.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str = "main") -> str:
        return str(self.browser.script("return document.querySelector(arguments[0])?.textContent ?? ''", selector))

    def click(self, selector: str, words: str = "") -> None:
        """Click as soon as it can be: a page that is updated meanwhile is asked again."""

        def clicked() -> bool:
            self.sees(selector, words).click()
            return True

        self.until(clicked, f"click {selector}")

    def write(self, selector: str, words: str) -> None:
        """Have a field contain these words."""

        def written() -> bool:
            field = self.sees(selector)
            field.clear()
            field.send_keys(words)
            return bool(field.get_property("value") == words)

        self.until(written, f"write into {selector}")

    def figure(self, name: str) -> str:
        """The number of a tile."""
        return self.text(f'[data-figure="{name}"] strong')

    def fetched(self, method: str, path: str, body: Any = None) -> int:
        """The status of a request that the page itself makes, with its key."""
        words = """
            const [method, path, body, done] = arguments;
            const key = sessionStorage.getItem('omnibus-key');
            const headers = {Authorization: `Bearer ${key}`, 'Content-Type': 'application/json'};
            fetch(path, {method, headers, body: body && JSON.stringify(body)}).then((answer) => done(answer.status));
        """
        return int(self.browser.driver.execute_async_script(words, method, path, body))


@contextmanager
def dashboard(url: str, *, refused: bool = False) -> Iterator[Page]:
    """A page in a browser of its own. At the end the console must have had no error, and no other host a request.

    `refused`: statuses of refusals may be among the errors, which Chromium writes there by itself.
    """
    with chromium() as browser:
        yield Page(browser, url)
        errors = [
            one for one in browser.errors() if not (refused and "the server responded with a status of 40" in one)
        ]
        assert errors == [], errors
        assert browser.hosts() == {urlsplit(url).netloc}


def seconds_until(happened: Callable[[], bool], timeout: float) -> float:
    """How long it takes until something has happened, asked again and again; `timeout` when it does not."""
    began = time.monotonic()
    while time.monotonic() - began < timeout:
        if happened():
            return time.monotonic() - began
    return timeout
