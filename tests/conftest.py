"""Fixtures: a real nats-server a session, a connection and a pipeline name a test."""

from __future__ import annotations

import asyncio
import os
import secrets
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import hypothesis
import pytest
import pytest_asyncio
import structlog
import uvloop
from xdist.remote import Producer

from omnibus.broker.connection import Connection, connect
from omnibus.broker.embedded import EmbeddedServer
from omnibus.broker.listening import free_port
from tests.support.side_by_side import FileScheduling

hypothesis.settings.register_profile("tests", deadline=None)  # others on the machine make an example slow, not wrong
hypothesis.settings.load_profile("tests")

os.environ.setdefault(
    "OMNIBUS_ALLOWED_MODULES", "tests.support"
)  # stages of tests that are deployed, and served by workers


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> FileScheduling:
    """Files side by side stay whole: engines are started once a file."""
    return FileScheduling(config, log)


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Tests run on the loop that the product runs on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="module", autouse=True)
def default_logs() -> Iterator[None]:
    """A façade configures structlog for its process: the tests after its module see every event again."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    """A folder of this session with a short path, for sockets too."""
    with tempfile.TemporaryDirectory(prefix="omnibus-test-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def nats_server(scratch: Path) -> Iterator[EmbeddedServer]:
    """One nats-server for the whole session: tests keep apart by the pipeline's name. Never kill this one."""
    server = EmbeddedServer(scratch / "nats", profile="dev", port=free_port())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # tests have a loop each, this outlives them
        runner.run(server.__aenter__())
        yield server
        runner.run(server.kill())  # nobody needs its data: an orderly end takes seconds with hundreds of streams
        runner.run(server.stop())


@pytest_asyncio.fixture
async def own_server(tmp_path: Path) -> AsyncIterator[EmbeddedServer]:
    """A nats-server of this test alone, to kill and restart."""
    async with EmbeddedServer(tmp_path / "state", profile="dev", port=free_port()) as server:
        yield server


@pytest_asyncio.fixture
async def connection(nats_server: EmbeddedServer) -> AsyncIterator[Connection]:
    """A connection to the session's server."""
    async with connect(nats_server.url, name="test", role="test") as made:
        yield made


@pytest.fixture
def pipeline() -> str:
    """The name of a pipeline that no other test uses."""
    return f"p{secrets.token_hex(4)}"


@pytest.fixture
def quick_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Followers that no message reaches read records twice a second instead of every five."""
    monkeypatch.setattr("omnibus.client.channel.READ_EVERY", 0.5)
