"""One front door for all clients: before a real small language model, a model of vectors, and omni-tiny."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tools.serving import serving


@pytest.fixture(scope="package")
def url(scratch: Path) -> Iterator[str]:
    """Its address with /v1; it serves `smollm2`, `minilm` and `omni-tiny`, each with an orchestrator and workers of its own."""
    with ExitStack() as stack:
        flags = ("--port", "0", "--nats-port", "0")
        first = stack.enter_context(serving("smollm2", *flags, state_dir=scratch / "smollm2", timeout=800.0))
        joined = {"OMNIBUS_NATS_URL": first.nats_url}
        for other in ("minilm", "omni-tiny"):
            stack.enter_context(serving(other, "--no-frontdoor", state_dir=scratch / other, env=joined, timeout=400.0))
        yield f"{first.url}/v1"
