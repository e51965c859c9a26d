"""One running omni-tiny for all tests that go through its doors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.serving import Serving, serving

ALIAS = "tiny"


@pytest.fixture(scope="session")
def omni_tiny(scratch: Path) -> Iterator[Serving]:
    """`omnibus serve omni-tiny` on free ports, served under ALIAS too, as a child of the test session."""
    with serving(
        "omni-tiny", "--port", "0", "--nats-port", "0", "--served-model-name", ALIAS, state_dir=scratch / "omni-tiny"
    ) as server:
        yield server
