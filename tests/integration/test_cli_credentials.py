"""`omnibus nats credentials`: users that come and go, an authority that is given, and a head that other hosts reach by TLS."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from omnibus.broker.certificates import Authority
from omnibus.broker.connection import connect
from omnibus.errors import BrokerError
from tests.support.guarded import PIPELINE, guarded_server
from tests.support.netns import two_hosts
from tests.support.served import omnibus, write_pipeline
from tests.support.waiting import eventually

pytestmark = pytest.mark.integration


def _make(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Make everybody's credentials in `folder`/keys."""
    file = write_pipeline(folder, PIPELINE)
    return omnibus("nats", "credentials", "all", "-p", str(file), "--dir", str(folder / "keys"), *words, nats="")


async def test_user_is_cut_off_and_stays_out_when_it_is_revoked(tmp_path: Path) -> None:
    with guarded_server(tmp_path) as guarded:
        revoking = ("nats", "revoke", "--dir", str(guarded.keys))
        async with (
            connect(guarded.url, name="gone", access=guarded.access("observer")) as gone,
            connect(guarded.url, name="kept", access=guarded.access("operator")) as kept,
        ):
            done = omnibus(*revoking, "observer", nats="")
            assert (done.returncode, done.stdout) == (
                0, "observer is out: reload the server, nats-server --signal reload\n",
            )  # fmt: skip
            assert gone.connected, "nothing changes before the server reloads"
            guarded.reload(guarded.config.read_text())
            await eventually(lambda: not gone.connected, 20.0)
            assert kept.connected
        with pytest.raises(BrokerError):
            async with connect(guarded.url, name="again", access=guarded.access("observer"), deadline=2.0):
                pass
        before = guarded.config.read_text()
        again = omnibus(*revoking, "observer", nats="")
        assert (again.returncode, guarded.config.read_text()) == (2, before)
        assert "has no user 'observer': disconnects, frontdoor, operator, " in again.stderr


def test_server_and_users_are_of_the_given_authority_when_there_is_one(tmp_path: Path) -> None:
    certificate, key = tmp_path / "house.pem", tmp_path / "house.key"
    Authority.make(certificate, key)
    given = _make(tmp_path, "--ca", str(certificate), "--ca-key", str(key))
    assert given.returncode == 0, given.stderr
    keys = tmp_path / "keys"
    assert (keys / "ca.pem").read_bytes() == certificate.read_bytes()
    assert not (keys / "ca.key").exists(), "the key of a given authority stays where it is"
    for name in ("server", "operator", "worker-1"):
        checked = ["openssl", "verify", "-CAfile", str(certificate), str(keys / f"{name}.pem")]
        assert subprocess.run(checked, capture_output=True, check=False).returncode == 0, name


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--ca", "house.pem"], "--ca and --ca-key"),
        (["--ca-key", "house.key"], "--ca and --ca-key"),
        (["--ca", "house.pem", "--ca-key", "other.key"], "other.key is not the key of house.pem"),
        (["--ca", "house.key", "--ca-key", "house.key"], "cannot use house.key and house.key as certificate authority"),
        (["--ca", "none.pem", "--ca-key", "house.key"], "No such file"),
    ],
)
def test_nothing_is_made_when_the_given_authority_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("house", "other"):
        Authority.make(Path(f"{name}.pem"), Path(f"{name}.key"))
    refused = _make(tmp_path, *words)
    assert refused.returncode == 2
    assert says in refused.stderr
    assert not (tmp_path / "keys").exists()


async def test_worker_on_another_host_serves_by_tls_with_its_own_files_when_the_head_has_a_folder_of_users(
    tmp_path: Path,
) -> None:
    with two_hosts() as (head, far):
        made = _make(tmp_path, "--host", head.address)
        assert made.returncode == 0, made.stderr
        copy, log = tmp_path / "copy", tmp_path / "log"
        copy.mkdir()
        for file in (tmp_path / "keys").iterdir():
            if file.name == "ca.pem" or file.stem in ("worker-1", "supervisor-1"):
                shutil.copy(file, copy)
        url = f"tls://{head.address}:4222"
        here = {"OMNIBUS_NATS_URL": url, "OMNIBUS_NATS_CREDENTIALS": str(tmp_path / "keys")}
        there = {
            "OMNIBUS_NATS_URL": url, "OMNIBUS_NATS_CREDENTIALS": str(copy), "OMNIBUS_STATE_DIR": str(tmp_path / "none"),
        }  # fmt: skip
        serving = (
            "serve", str(tmp_path / "pipeline.yaml"), "--stages", "0", "--state-dir", str(tmp_path / "state"),
            "--nats-host", head.address, "--nats-security", str(tmp_path / "keys"), "--no-frontdoor",
        )  # fmt: skip
        working = ("worker", "--stage", "1", "--pipeline", "guarded", "--allow-module", "tests.support.whoami")
        with head.running(*serving, env={}, log=log), far.running(*working, env=there, log=log):
            await eventually(lambda: log.read_text().count("ready: guarded") == 2, 60.0)
            done = head.omnibus("submit", "hello", "-p", "guarded", env=here)
            assert done.returncode == 0, done.stderr
            assert done.stdout.strip().isdecimal(), "the far worker's process"
            deleting = ("pipeline", "delete", "guarded", "--yes", "--credentials", str(copy / "worker-1.nk"))
            assert far.omnibus(*deleting, env=there).returncode != 0, "a worker's files are no operator's"
            assert "guarded" in head.omnibus("status", env=here).stdout
        assert "permission_denied" not in log.read_text()
