"""Debian's Chromium, headless, on the dashboard of a front door: for its tests and its pictures."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

from omnibus.errors import ConfigError

PHONE: Final = (390, 844)
DESKTOP: Final = (1280, 900)
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--force-device-scale-factor=1", "--hide-scrollbars",
)  # fmt: skip
_LOADED = ("http", "https", "ws", "wss")
"""Schemes of addresses that go over a network."""


@dataclass(frozen=True, slots=True)
class Browser:
    """A browser with one page."""

    driver: Chrome

    def open(self, url: str, view: str = "overview") -> None:
        """Load the dashboard of the front door at `url` anew, and show a view of it."""
        self.driver.get("about:blank")
        self.driver.get(f"{url}/ui#/{view}")

    def show(self, view: str) -> None:
        """Show another view of the page that is open."""
        self.driver.execute_script("location.hash = arguments[0]", f"#/{view}")

    def resize(self, size: tuple[int, int], *, phone: bool = False) -> None:
        """Give the page this size, of a phone or of a window."""
        width, height = size
        self._command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2 if phone else 1, mobile=phone
        )  # fmt: skip

    def prefer(self, scheme: str) -> None:
        """Have the system prefer `light` or `dark`."""
        self._command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def script(self, words: str, *arguments: Any) -> Any:
        return self.driver.execute_script(words, *arguments)

    def before_each_page(self, words: str) -> None:
        """Have a script run in every page that is loaded from now on, before its own."""
        self._command("Page.addScriptToEvaluateOnNewDocument", source=words)

    def errors(self) -> list[str]:
        """Errors in the console since the last question."""
        return [entry["message"] for entry in self._log("browser") if entry["level"] == "SEVERE"]

    def hosts(self) -> set[str]:
        """Hosts, with their ports, that the page has asked since the last question."""
        messages = (json.loads(entry["message"])["message"] for entry in self._log("performance"))
        sent = [one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"]
        return {urlsplit(url).netloc for url in sent if urlsplit(url).scheme in _LOADED}

    def _log(self, name: str) -> list[dict[str, Any]]:
        return list(self.driver.get_log(name))  # type: ignore[no-untyped-call]

    def _command(self, method: str, **parameters: Any) -> None:
        self.driver.execute_cdp_cmd(method, parameters)


@contextmanager
def chromium(*flags: str) -> Iterator[Browser]:
    """A browser of its own, with an empty profile and further flags; ConfigError where Debian's chromium-driver is missing."""
    driver = shutil.which("chromedriver")
    if driver is None:
        raise ConfigError("there is no chromedriver: apt-get install chromium chromium-driver")
    with tempfile.TemporaryDirectory(prefix="omnibus-browser-", ignore_cleanup_errors=True) as profile:
        options = ChromeOptions()
        for flag in (*_FLAGS, *flags, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        browser = Browser(Chrome(options=options, service=Service(executable_path=driver)))
        browser.resize(DESKTOP)
        try:
            yield browser
        finally:
            browser.driver.quit()
