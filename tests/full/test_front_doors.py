"""Several front doors on one port."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from omnibus.broker.listening import free_port
from omnibus.errors import PortTaken
from omnibus.frontdoor.headers import PROCESS_HEADER
from omnibus.frontdoor.server import bound
from tests.support.processes import has_mapped, is_running
from tests.support.served import start, write_pipeline
from tests.support.waiting import eventually
from tools.serving import Serving, serving

pytestmark = pytest.mark.integration
COUNT = 3


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("doors")
    flags = ("--port", "0", "--nats-port", "0", "--frontdoors", str(COUNT))
    with serving(str(write_pipeline(folder)), *flags, state_dir=folder / "state") as running:
        yield running


def answering(url: str) -> int:
    """The process that the kernel gives a new connection to."""
    return int(httpx.get(f"{url}/live", timeout=10.0).headers[PROCESS_HEADER])


async def all_of_them(url: str) -> set[int]:
    """The processes that answer, once all do."""
    seen: set[int] = set()

    def complete() -> bool:
        try:
            seen.add(answering(url))
        except httpx.TransportError:  # one that is dying had taken the connection
            return False
        seen.difference_update([pid for pid in seen if not is_running(pid)])
        return len(seen) == COUNT

    await eventually(complete, what="all front doors answer", timeout=60.0)
    return seen


def counted(url: str) -> float:
    """Completions that were answered, as any of them says."""
    lines = httpx.get(f"{url}/metrics", timeout=10.0).text.splitlines()
    wanted = 'omnibus_http_requests_total{process="frontdoor-'
    answers = 'route="/v1/completions",status="200"} '
    return sum(float(line.split()[-1]) for line in lines if line.startswith(wanted) and answers in line)


def complete(url: str) -> str:
    answer = httpx.post(f"{url}/v1/completions", json={"prompt": "hello"}, timeout=30.0)
    answer.raise_for_status()
    text: str = answer.json()["choices"][0]["text"]
    return text


async def test_each_serves_and_shows_the_metrics_of_all_and_a_dead_one_is_started_again(served: Serving) -> None:
    first = await all_of_them(served.url)
    before = counted(served.url)
    assert [complete(served.url) for _ in range(12)] == ["hello"] * 12
    assert {counted(served.url) for _ in range(8)} == {before + 12}, "a process shows what it has answered itself"

    victim = answering(served.url)
    os.kill(victim, signal.SIGKILL)
    second = await all_of_them(served.url)
    assert first - second == {victim}
    assert counted(served.url) == before + 12, "what the dead one had answered is forgotten"
    assert complete(served.url) == "hello"


async def test_front_door_has_not_loaded_numpy_when_it_has_answered_with_texts(served: Serving) -> None:
    front_doors = await all_of_them(served.url)
    assert [complete(served.url) for _ in range(4 * COUNT)] == ["hello"] * 4 * COUNT
    assert [pid for pid in front_doors if has_mapped(pid, "/numpy/")] == []


async def test_all_end_with_the_command_and_leave_the_port(tmp_path: Path, served: Serving) -> None:
    port = free_port()
    words = ("frontdoor", "--frontdoors", str(COUNT), "--port", str(port), "--state-dir", str(tmp_path))
    command = start(*words, nats=served.nats_url, log=tmp_path / "log")
    url = f"http://127.0.0.1:{port}"
    try:
        pids = await all_of_them(url)
        assert command.pid not in pids
        with pytest.raises(PortTaken):
            bound("127.0.0.1", port)
        assert complete(url) == "hello"
        command.send_signal(signal.SIGINT)
        assert command.wait(60.0) == 0, (tmp_path / "log").read_text()
    finally:
        command.kill()
    await eventually(lambda: not any(map(is_running, pids)), what="no front door is left")
    bound("127.0.0.1", port, listens=True).close()


@pytest.mark.parametrize("first", [True, False])
def test_a_port_is_shared_only_when_both_agree(first: bool) -> None:
    def taken(port: int, *, share: bool) -> Callable[[], socket.socket]:
        return lambda: bound("127.0.0.1", port, share=share, listens=True)

    with closing(taken(0, share=first)()) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(PortTaken):
            taken(port, share=not first)()
        if first:
            taken(port, share=True)().close()
