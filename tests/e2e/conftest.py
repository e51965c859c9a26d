"""One running omni-tiny for all tests that send it requests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from xdist.remote import Producer

from tests.support.side_by_side import FileScheduling
from tools.serving import Serving, serving

ALIAS = "tiny"


class _ByServer(FileScheduling):
    """Keeps the tests of a file in one process, and all tests of the shared omni-tiny: each has one engine to start."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "omni-tiny" if "omni_tiny: Serving" in Path(self.config.rootpath, file).read_text() else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> _ByServer:
    return _ByServer(config, log)


@pytest.fixture(scope="session")
def omni_tiny(scratch: Path) -> Iterator[Serving]:
    """`omnibus serve omni-tiny` on free ports, served under ALIAS too, as a child of the test session."""
    with serving(
        "omni-tiny", "--port", "0", "--nats-port", "0", "--served-model-name", ALIAS, state_dir=scratch / "omni-tiny"
    ) as server:
        yield server
