"""Pages of the site that are no files of `docs/`: those made from the code, and those of the repository's root.

mkdocs calls `on_files` and `on_page_markdown`; `mkdocs.yml` names this file.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from tools.site.asyncapi import channels_page, document_text
from tools.site.options import options_page

ROOT = Path(__file__).parents[2]
AT_THE_ROOT = {
    "architecture.md": "ARCHITECTURE.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
}
"""Files of the repository's root, by their page."""
MADE: dict[str, Callable[[], str]] = {
    "reference/options.md": options_page,
    "reference/messages.md": channels_page,
    "reference/asyncapi.yaml": document_text,
}
"""Files that are made from the code, by their place in the site."""


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are no files of `docs/`."""
    for place, name in AT_THE_ROOT.items():
        files.append(File.generated(config, place, content=(ROOT / name).read_text()))
    for place, make in MADE.items():
        files.append(File.generated(config, place, content=make()))
    return files


def on_page_markdown(markdown: str, page: Any, **_more: Any) -> str:
    """Links to files of the root, and from them, as they are in the site: `docs/` is its top there."""
    here = page.file.src_uri
    if here in AT_THE_ROOT:
        markdown = re.sub(r"\]\(docs/", "](", markdown)
    for place, name in AT_THE_ROOT.items():
        markdown = re.sub(rf"\]\((?:\.\./)*{re.escape(name)}\)", f"]({'../' * here.count('/')}{place})", markdown)
    return markdown
