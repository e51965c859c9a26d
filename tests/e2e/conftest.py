"""One running omni-tiny for all tests that send it requests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.serving import Serving, serving

ALIAS = "tiny"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several processes (`--dist loadgroup`), tests of the shared omni-tiny stay together, and those of a file."""
    for item in items:
        group = "omni-tiny" if "omni_tiny" in getattr(item, "fixturenames", ()) else item.path.name
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def omni_tiny(scratch: Path) -> Iterator[Serving]:
    """`omnibus serve omni-tiny` on free ports, served under ALIAS too, as a child of the test session."""
    with serving(
        "omni-tiny", "--port", "0", "--nats-port", "0", "--served-model-name", ALIAS, state_dir=scratch / "omni-tiny"
    ) as server:
        yield server
