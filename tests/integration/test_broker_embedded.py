"""The embedded nats-server: starts, is found, ends with its owner, and says clearly why it cannot start."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from omnibus.broker.connection import connect
from omnibus.broker.discovery import discover, running_server
from omnibus.broker.embedded import EmbeddedServer
from omnibus.broker.listening import free_port
from omnibus.broker.nats_access import CREDENTIALS_FILE, Access, without_password
from omnibus.broker.server_binary import find_binary, profile_path
from omnibus.child_process import start_child
from omnibus.errors import BrokerDenied, BrokerError, BrokerUnavailable, ConfigError, ServerBinaryError
from omnibus.settings import Settings
from omnibus.wire import subjects
from tests.support.served import command_line
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


async def test_server_starts_fast_and_serves_jetstream_when_entered(tmp_path: Path) -> None:
    started = time.monotonic()
    async with EmbeddedServer(tmp_path, port=free_port()) as server:
        assert time.monotonic() - started < 3.0  # about 0.1 s on a quiet machine
        async with connect(server.url, name="test") as connection:
            answer = await connection.api("INFO")
            assert "streams" in answer
        assert server.log_path.exists()
    assert running_server(tmp_path) is None


async def test_server_is_found_when_it_runs_over_the_state_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMNIBUS_NATS_URL", raising=False)
    settings = Settings(state_dir=tmp_path, nats_port=free_port())
    assert discover(settings).url == "nats://127.0.0.1:4222"
    async with EmbeddedServer.of(settings) as server:
        found = discover(settings)
        assert (found.url, found.system_url) == (server.url, server.system_url)
        assert stat.S_IMODE((tmp_path / "server.json").stat().st_mode) == 0o600
        explicit = discover(Settings(state_dir=tmp_path, nats_url="nats://elsewhere:4222"))
        assert explicit.url == "nats://elsewhere:4222"
    assert discover(settings).url == "nats://127.0.0.1:4222"


async def test_observer_has_a_password_when_its_writer_was_killed_before_it_wrote(tmp_path: Path) -> None:
    (tmp_path / "nats-system.credentials").touch()
    async with EmbeddedServer(tmp_path, profile="dev", port=free_port()) as server:
        assert re.search("//observer:[^@]{20,}@", server.system_url)


async def test_server_takes_a_free_port_when_the_wanted_one_is_taken(
    own_server: EmbeddedServer, tmp_path: Path
) -> None:
    async with EmbeddedServer(tmp_path / "other", port=own_server.port) as second:
        assert second.port != own_server.port


@pytest.mark.parametrize("wanted", [None, "7"])
async def test_server_leaves_half_the_cores_to_its_clients_unless_it_is_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: str | None
) -> None:
    monkeypatch.delenv("GOMAXPROCS", raising=False)
    if wanted is not None:
        monkeypatch.setenv("GOMAXPROCS", wanted)
    async with EmbeddedServer(tmp_path, profile="dev", port=free_port()) as server:
        given = Path(f"/proc/{server.pid}/environ").read_text().split("\0")  # noqa: ASYNC240 no disk
    assert f"GOMAXPROCS={wanted or max(1, len(os.sched_getaffinity(0)) // 2)}" in given


async def test_second_server_is_refused_when_the_state_directory_is_held(own_server: EmbeddedServer) -> None:
    with pytest.raises(ConfigError, match=f"in use by another nats-server at {without_password(own_server.url)}"):
        async with EmbeddedServer(own_server.state_dir, port=free_port()):
            pytest.fail("two servers over one state directory")


async def test_data_survives_when_the_server_is_killed_and_started_again(own_server: EmbeddedServer) -> None:
    async with connect(own_server.url, name="test") as connection:
        await connection.api("STREAM.CREATE.KEEP", {"name": "KEEP", "subjects": ["keep"]})
        await connection.js_publish("keep", b"x")
        await own_server.kill()
        await own_server.start()
        info = await connection.api("STREAM.INFO.KEEP")
        assert info["state"]["messages"] == 1


async def test_server_is_started_again_when_supervised(own_server: EmbeddedServer) -> None:
    supervisor = asyncio.create_task(own_server.supervise())
    first = own_server.pid
    assert first is not None
    async with connect(own_server.url, name="test") as connection:
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: own_server.pid not in (None, first))
        await connection.wait_connected(5)
        await connection.api("INFO")
    supervisor.cancel()


_OWNER = """
import asyncio, sys
from pathlib import Path
from omnibus.broker.embedded import EmbeddedServer
from omnibus.broker.listening import free_port
from omnibus.observability.logging import configure_logging
configure_logging()
async def main():
    async with EmbeddedServer(Path(sys.argv[1]), port=free_port()) as server:
        print(server.pid, flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


async def test_server_ends_when_its_owner_is_killed(tmp_path: Path) -> None:
    owner = await start_child(sys.executable, "-c", _OWNER, str(tmp_path), stdout=subprocess.PIPE)
    assert owner.stdout is not None
    try:
        pid = int(await asyncio.wait_for(owner.stdout.readline(), 20))
        assert _alive(pid)
    finally:
        owner.kill()
        await owner.wait()
        owner.close()
    await eventually(lambda: not _alive(pid))
    async with EmbeddedServer(tmp_path, port=free_port()):  # and the state directory is free again
        pass


def _program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("echo 'nats-server: v2.11.9'", "is nats-server 2.11.9, older than 2.12"),
        ("echo hello", "does not say which nats-server it is"),
    ],
)
async def test_start_is_refused_when_the_binary_is_too_old_or_another(tmp_path: Path, text: str, message: str) -> None:
    binary = _program(tmp_path / "nats-server", text)
    with pytest.raises(ServerBinaryError, match=message):
        async with EmbeddedServer(tmp_path / "state", binary=binary):
            pytest.fail("started")


async def test_start_is_refused_when_the_binary_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ServerBinaryError, match="OMNIBUS_NATS_SERVER"):
        async with EmbeddedServer(tmp_path, binary=tmp_path / "none"):
            pytest.fail("started")


async def test_start_shows_the_log_when_the_server_cannot_run(tmp_path: Path) -> None:
    (tmp_path / "nats").write_text("a file where the store belongs")
    with pytest.raises(ServerBinaryError, match=r"did not start; the end of .*nats-server\.log"):
        async with EmbeddedServer(tmp_path, port=free_port()):
            pytest.fail("started")


async def test_connect_says_what_to_do_when_nothing_answers() -> None:
    url = f"nats://user:secret@127.0.0.1:{free_port()}"
    with pytest.raises(BrokerUnavailable, match=r"omnibus serve.*OMNIBUS_NATS_URL") as caught:
        async with connect(url, name="test", deadline=0.5):
            pytest.fail("connected")
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("url", ["http://127.0.0.1:4222", "nats://", "nats://host:none", "a,,b", ""])
async def test_connect_is_refused_when_the_url_is_malformed(url: str) -> None:
    with pytest.raises(ConfigError, match="no NATS URL"):
        async with connect(url, name="test"):
            pytest.fail("connected")


async def test_connect_is_refused_when_the_credentials_are_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="OMNIBUS_NATS_CREDENTIALS"):
        async with connect("nats://127.0.0.1:4222", name="test", access=Access(credentials=tmp_path / "none")):
            pytest.fail("connected")


@pytest.mark.parametrize("sign_in", ["", "omnibus:wrong@", "omnibus:omnibus@", "observer:@"])
async def test_server_refuses_a_client_when_it_does_not_know_the_password(
    nats_server: EmbeddedServer, sign_in: str
) -> None:
    url = without_password(nats_server.url).replace("//", f"//{sign_in}")
    with pytest.raises(BrokerDenied, match="OMNIBUS_NATS_CREDENTIALS"):  # at once, long before the deadline
        async with asyncio.timeout(20), connect(url, name="stranger", deadline=60):
            pytest.fail("connected")


async def test_secrets_are_the_owner_s_alone_when_the_server_runs(own_server: EmbeddedServer) -> None:
    (password,) = {line.partition(":")[2] for line in (own_server.state_dir / CREDENTIALS_FILE).read_text().split()}
    for name in (CREDENTIALS_FILE, "nats-system.credentials", "nats-server.conf", "server.json"):
        assert stat.S_IMODE((own_server.state_dir / name).stat().st_mode) == 0o600, name
    process = Path(f"/proc/{own_server.pid}")
    for what in ("cmdline", "environ"):
        assert password not in (process / what).read_text(), what
    assert len(password) >= 32


async def test_copy_of_the_credentials_opens_the_server_when_it_is_named(
    own_server: EmbeddedServer, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copy.write_bytes((own_server.state_dir / CREDENTIALS_FILE).read_bytes())
    found = discover(Settings(state_dir=tmp_path, nats_url=without_password(own_server.url), nats_credentials=copy))
    async with connect(found.url, name="elsewhere", access=found.access) as connection:
        assert connection.connected


async def test_password_of_this_machine_s_server_is_found_when_its_url_is_given_alone(
    own_server: EmbeddedServer,
) -> None:
    found = discover(Settings(state_dir=own_server.state_dir, nats_url=without_password(own_server.url)))
    async with connect(found.url, name="here", access=found.access) as connection:
        assert connection.connected
    assert not any(value for value in found.environment.values() if "omnibus:" in value), "children read it from a file"


async def test_credentials_that_are_given_count_when_the_server_is_found(
    own_server: EmbeddedServer, tmp_path: Path
) -> None:
    """They were left unread, and this machine's own password taken."""
    wrong = tmp_path / "wrong"
    wrong.write_text("somebody:else\n")
    found = discover(Settings(state_dir=own_server.state_dir, nats_credentials=wrong))
    assert found.url == without_password(own_server.url)
    with pytest.raises(BrokerError, match=r"(?i)authorization|credentials"):
        async with connect(found.url, name="stranger", access=found.access):
            pass
    copy = tmp_path / "copy"
    copy.write_bytes((own_server.state_dir / CREDENTIALS_FILE).read_bytes())
    found = discover(Settings(state_dir=own_server.state_dir, nats_credentials=copy))
    async with connect(found.url, name="here", access=found.access) as connection:
        assert connection.connected
    assert found.environment["OMNIBUS_NATS_CREDENTIALS"] == str(copy), "children have the same"


@pytest.mark.parametrize(
    "flags",
    [("--nats-port", "1"), ("--insecure",), ("--nats", "nats://else:4222", "--nats-host", "10.0.0.1")],
    ids=" ".join,
)
async def test_flags_of_a_new_server_are_refused_when_another_is_used(
    own_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
) -> None:
    """They changed nothing, without a word."""
    monkeypatch.delenv("OMNIBUS_NATS_URL", raising=False)
    words = command_line("serve", "omni-tiny", "--no-frontdoor", "--state-dir", str(own_server.state_dir), *flags)
    refused = await asyncio.to_thread(subprocess.run, words, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 2
    assert next(flag for flag in reversed(flags) if flag.startswith("--")) in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "10.1.2.3", "broker.example"])
async def test_server_does_not_start_when_others_could_reach_it_without_encryption(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigError, match="--insecure"):
        async with EmbeddedServer(tmp_path, port=free_port(), host=host):
            pytest.fail("started")
    assert not [*tmp_path.iterdir()]  # noqa: ASYNC240 a test waits for nobody


async def test_server_asks_for_the_password_when_it_is_insecure_on_purpose(tmp_path: Path) -> None:
    async with EmbeddedServer(tmp_path, port=free_port(), host="0.0.0.0", insecure=True) as server:
        async with connect(server.url, name="own") as connection:
            assert connection.connected
        with pytest.raises(BrokerDenied):
            async with connect(without_password(server.url), name="stranger"):
                pytest.fail("connected")


async def test_observer_receives_disconnects_and_nothing_else_when_on_the_system_account(
    nats_server: EmbeddedServer,
) -> None:
    heard: list[bytes] = []

    async def on_message(message: object) -> None:
        heard.append(message.data)  # type: ignore[attr-defined]

    async with connect(nats_server.system_url, name="observer", role="disconnects") as observer:
        await observer.subscribe(subjects.disconnects("OMNI"), on_message, queue="orchestrators")
        async with connect(nats_server.url, name="replica-of-this-test"):
            pass
        await eventually(lambda: any(b"replica-of-this-test" in data for data in heard))
        denied = observer.metrics.permission_denied
        for number, subject in enumerate(("$SYS.>", "$SYS.ACCOUNT.*.CONNECT", "omni.>", ">"), 1):
            with pytest.raises(BrokerDenied, match="may not subscribe to"):
                await observer.subscribe(subject, on_message)
            await eventually(lambda number=number: denied._value.get() >= number, what=f"{subject} is denied")
        for subject in ("omni.p.ctl.all", "$SYS.REQ.SERVER.PING.CONNZ", "$SYS.REQ.ACCOUNT.OMNI.CONNZ"):
            with pytest.raises(BrokerDenied, match="may not publish"):
                await observer.request(subject, timeout=30)
        assert denied._value.get() >= 7


@pytest.mark.parametrize("profile", ["dev", "balanced", "durable", "cluster/node1", "cluster/node2", "cluster/node3"])
async def test_shipped_configuration_is_valid_when_the_server_checks_it(profile: str) -> None:
    checked = await asyncio.to_thread(
        subprocess.run,
        [find_binary(None), "-t", "-c", profile_path(profile)],
        env={
            **os.environ,
            "OMNIBUS_NATS_PASSWORD": "secret",
            "OMNIBUS_NATS_SYSTEM_PASSWORD": "secret",
            "OMNIBUS_NATS_STORE": "/tmp/x",
        },
        capture_output=True,
        check=False,
        timeout=20,
    )
    assert checked.returncode == 0, checked.stderr
