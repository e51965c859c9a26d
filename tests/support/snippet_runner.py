"""Runs blocks of Python in one namespace, one after the other: `python -m tests.support.snippet_runner < blocks.json`.

A block with `async with` or `await` at its top runs in an event loop of its own, as in a notebook.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import sys
from typing import Any


def run(blocks: list[list[str]]) -> None:
    """Run (name, code) pairs; an exception names the block in its traceback."""
    names: dict[str, Any] = {"__name__": "snippet"}
    for name, code in blocks:
        made = eval(compile(code, name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
        if inspect.iscoroutine(made):
            asyncio.run(made)


if __name__ == "__main__":
    run(json.load(sys.stdin))
