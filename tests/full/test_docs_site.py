"""The documentation as a site: it builds without a warning and without the network, and asks no other host for anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import omnibus
from tools.site.options import all_commands, shown_options

pytestmark = pytest.mark.integration

ROOT = Path(omnibus.__file__).parents[1]
RESOURCE = re.compile(r'<(?:script|img|iframe|source)\b[^>]*\bsrc="(?:https?:)?//|<link\b[^>]*\bhref="(?:https?:)?//')
"""What a browser loads from another host; a link to follow is none."""
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly: an orphan page, a link or a heading that is not there ends it."""
    folder = tmp_path_factory.mktemp("site")
    away = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), NOWHERE)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **away, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_no_page_asks_another_host_for_anything(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 50
    assert [(page.name, found[0]) for page in pages for found in RESOURCE.finditer(page.read_text())] == []


def test_every_option_of_every_command_is_on_its_page(site: Path) -> None:
    page = (site / "reference" / "options.html").read_text()
    for words, command in all_commands():
        assert f">{words}<" in page, words
        missing = [name for option in shown_options(command) for name in option.opts if name not in page]
        assert missing == []


def test_picture_of_the_pipeline_is_on_the_first_page(site: Path) -> None:
    assert "images/pipeline.svg" in (site / "index.html").read_text()
    assert (site / "images" / "pipeline.svg").is_file()
    assert (site / "reference" / "asyncapi.yaml").is_file()
