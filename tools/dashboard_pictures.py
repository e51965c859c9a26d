"""Pictures of every view of the dashboard, in both themes, in a window and on a phone: `python -m tools.dashboard_pictures`.

Serves omni-tiny under load, with a batch, a film and a dead letter of a pipeline that fails. `--docs` also writes them, small,
to docs/images.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
from PIL import Image
from selenium.webdriver.support.wait import WebDriverWait

from tools.browser import DESKTOP, PHONE, Browser, chromium
from tools.serving import serving

OUT, DOCS = Path("out/dashboard"), Path(__file__).parents[1] / "docs" / "images"
VIEWS = ("overview", "replicas", "requests", "waterfall", "jobs", "dead", "playground")
PHONE_WIDTH = 480
"""Pixels of a phone's picture in the guide, where several stand in a row."""
PROMPT = "draw a red circle left of a blue square"
_FAILING = """
name: text-only
max_attempts: 2
stages:
- {stage_id: 0, name: writer, engine: sim, final_output: true, final_output_type: text,
   engine_args: {outputs: {text: text}, fail_rate: 1.0}}
"""
_CALLERS = 3


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--docs", action="store_true", help="Write them to the guide, too.")
    given = arguments.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        server = stack.enter_context(
            serving(
                "omni-tiny",
                "--stage-init-timeout",
                "900",
                "--init-timeout",
                "900",
                "--port",
                "0",
                "--nats-port",
                "0",
                state_dir=Path(folder) / "a",
                timeout=900.0,
            )
        )
        faults = Path(folder) / "faults.yaml"
        faults.write_text(_FAILING)
        client = stack.enter_context(httpx.Client(base_url=server.url, timeout=120.0))
        _serve_faults(stack, faults, server.nats_url)
        _leave_traces(client)
        browser = stack.enter_context(chromium())
        load = stack.enter_context(ThreadPoolExecutor(_CALLERS))
        until = time.monotonic() + 1200.0
        state = {"until": until}
        for _ in range(_CALLERS):
            load.submit(_ask_on, server.url, state)
        time.sleep(6.0)
        try:
            for scheme in ("light", "dark"):
                for device in ("window", "phone"):
                    browser.prefer(scheme)
                    browser.resize(PHONE if device == "phone" else DESKTOP, phone=device == "phone")
                    for view in VIEWS:
                        name = f"{view}-{scheme}-{device}"
                        _take(browser, server.url, view, OUT / f"{name}.png")
                        if given.docs:
                            _compress(OUT / f"{name}.png", DOCS / f"dashboard-{name}.webp")
        finally:
            state["until"] = 0.0


def _serve_faults(stack: ExitStack, file: Path, nats_url: str) -> None:
    import os  # noqa: PLC0415 one variable for one child

    os.environ["OMNIBUS_NATS_URL"] = nats_url
    try:
        stack.enter_context(serving(str(file), "--no-frontdoor", state_dir=file.parent / "b"))
    finally:
        del os.environ["OMNIBUS_NATS_URL"]


def _ask_on(url: str, state: dict[str, float]) -> None:
    with httpx.Client(base_url=url, timeout=120.0) as client:
        while time.monotonic() < state["until"]:
            client.post("/v1/chat/completions", json=_body(["text", "image", "audio"]))


def _body(modalities: list[str]) -> dict[str, object]:
    return {"model": "omni-tiny", "messages": [{"role": "user", "content": PROMPT}], "modalities": modalities}


def _leave_traces(client: httpx.Client) -> None:
    """A film, a batch, files, and dead letters."""
    client.post("/v1/videos", json={"model": "omni-tiny", "prompt": PROMPT}).raise_for_status()
    lines = [
        f'{{"custom_id": "line-{number}", "method": "POST", "url": "/v1/chat/completions", "body": {{"model": "omni-tiny", '
        f'"messages": [{{"role": "user", "content": "{PROMPT}"}}]}}}}'
        for number in range(200)
    ]
    file = client.post(
        "/v1/files", data={"purpose": "batch"}, files={"file": ("prompts.jsonl", "\n".join(lines).encode())}
    )
    body = {"input_file_id": file.json()["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    client.post("/v1/batches", json=body).raise_for_status()
    for _ in range(2):
        client.post(
            "/v1/chat/completions", json={"model": "text-only", "messages": [{"role": "user", "content": PROMPT}]}
        )


def _take(browser: Browser, url: str, view: str, path: Path) -> None:
    browser.open(url, "requests" if view == "waterfall" else view)
    _wait(browser, "return document.querySelector('#link-state')?.textContent === 'live'")
    if view == "overview":
        _wait(browser, "return document.querySelector('.stage') !== null")
        browser.script("document.querySelector('.stage').dispatchEvent(new Event('click', {bubbles: true}))")
        time.sleep(4.0)  # a line of load to look at
    elif view in ("requests", "waterfall"):
        _wait(browser, "return document.querySelectorAll('main tbody tr').length > 3")
    elif view == "jobs":
        _wait(browser, "return document.querySelectorAll('main tbody tr').length > 2")
    elif view == "dead":
        _wait(browser, "return document.querySelector('.dead-letter') !== null")
    if view == "waterfall":
        browser.script("[...document.querySelectorAll('main tbody tr')].find((row) => row.textContent.includes('audio'))"
                       ".querySelector('[data-action=trace]').click()")  # fmt: skip
        _wait(browser, "return document.querySelector('#sheet .waterfall') !== null")
    if view == "playground":
        _wait(browser, "return document.querySelector('#try-image') !== null")
        browser.script("document.querySelector('#try-image').click(); document.querySelector('#try-prompt').value = arguments[0];"
                       "document.querySelector('#try-run').click()", PROMPT)  # fmt: skip
        _wait(browser, "return document.querySelector('.result').dataset.state === 'done'")
    time.sleep(0.5)
    if browser.script("return document.documentElement.scrollWidth > document.documentElement.clientWidth"):
        raise SystemExit(f"{path.stem}: the page is wider than its window")
    path.write_bytes(browser.driver.get_screenshot_as_png())
    print(path)


def _wait(browser: Browser, words: str) -> None:
    WebDriverWait(browser.driver, 180.0).until(lambda _driver: browser.script(words), words)


def _compress(source: Path, target: Path) -> None:
    with Image.open(io.BytesIO(source.read_bytes())) as picture:
        if picture.height > picture.width:
            picture.thumbnail((PHONE_WIDTH, PHONE_WIDTH * 4))
        picture.convert("RGB").save(target, "WEBP", quality=75, method=6)
    print(target, target.stat().st_size)


if __name__ == "__main__":
    main()
