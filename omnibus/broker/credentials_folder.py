"""A folder with the users of a server and their secrets: nkeys, certificates, and the server's configuration that names them.

The server gets `production.conf`, `ca.pem`, `server.pem` and `server.key`; every other machine `ca.pem` and the files of its own
roles. `ca.key` stays here.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Sequence
from pathlib import Path

import msgspec
import nkeys

from omnibus.broker import server_config
from omnibus.broker.certificates import Authority
from omnibus.broker.nats_access import CA_FILE, SEED_SUFFIX, inbox_prefix, public_key, write_private
from omnibus.broker.roles import NatsRole, Permissions, permissions
from omnibus.broker.server_binary import profile_path
from omnibus.broker.server_config import Tls, User
from omnibus.errors import ConfigError
from omnibus.pipeline.spec import PipelineSpec

CONFIG_FILE = "production.conf"
_USERS_FILE = "users.json"
_LISTEN = "0.0.0.0:4222"


class CredentialsFolder:
    """Reads and writes one folder. Methods raise ConfigError for what cannot be read or written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def prepare(self, hosts: Sequence[str], ca: Path | None = None, ca_key: Path | None = None) -> Authority:
        """Make the folder, its authority and the server's certificate for these hosts, where they are missing.

        Loopback and this machine's name are among the hosts.
        """
        if (ca is None) != (ca_key is None):
            raise ConfigError("a given certificate authority needs its certificate and its key: --ca and --ca-key")
        given = Authority(ca, ca_key) if ca is not None and ca_key is not None else None
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        own, own_key = self.path / CA_FILE, self.path / "ca.key"
        if ca is not None:
            own.write_bytes(ca.read_bytes())
        authority = given or (Authority(own, own_key) if own_key.is_file() else Authority.make(own, own_key))
        certificate = self.path / "server.pem"
        if hosts or not certificate.is_file():
            names = dict.fromkeys((*hosts, "localhost", "127.0.0.1", socket.gethostname()))
            authority.issue("nats-server", certificate, self.path / "server.key", hosts=tuple(names))
        return authority

    def add(
        self, authority: Authority, role: NatsRole, specs: Sequence[PipelineSpec], *, name: str,
        stages: Sequence[int] = (), token: str = "",
    ) -> Path:  # fmt: skip
        """Make a user, or give the one of this name the permissions of now; returns the path of its nkey."""
        path = self.path / f"{name}{SEED_SUFFIX}"
        seed = _seed_in(path) if path.is_file() else _new_seed()
        public = public_key(seed)
        allowed = _of_all(role, specs, stages, token, inbox_prefix(public))
        names = " ".join(
            f"{stage.stage_id} {stage.name}" for spec in specs for stage in spec.stages if stage.stage_id in stages
        )
        head = {"name": name, "role": role.value, "pipelines": " ".join(spec.name for spec in specs), "stages": names}
        if token:
            head["token"] = token
        comment = "".join(f"# {key}: {value}\n" for key, value in head.items())
        write_private(path, f"# A credential of Omnibus for NATS. Keep it secret.\n{comment}{seed}\n")
        authority.issue(name, self.path / f"{name}.pem", self.path / f"{name}.key")
        user = User(name=name, role=role, nkey=public, permissions=allowed)
        self._save([*(one for one in self.users() if one.name != name), user])
        return path

    def revoke(self, name: str) -> None:
        """Take a user out; its files stay. Raises ConfigError when there is none of this name."""
        users = self.users()
        kept = [user for user in users if user.name != name]
        if len(kept) == len(users):
            raise ConfigError(f"{self.path} has no user {name!r}: {', '.join(user.name for user in users) or 'none'}")
        self._save(kept)

    def users(self) -> list[User]:
        """All users, in the order of their names; nothing in their file is secret."""
        path = self.path / _USERS_FILE
        try:
            users = msgspec.json.decode(path.read_bytes(), type=list[User])
        except FileNotFoundError:
            return []
        except (OSError, msgspec.DecodeError) as error:
            raise ConfigError(f"cannot read {path}: {error}") from error
        # Invariant: never a user of this file without permissions: to a server that means all of them.
        if unlimited := [user.name for user in users if user.permissions is None]:
            raise ConfigError(f"{path} names no permissions of {', '.join(unlimited)}: make the folder anew")
        return users

    def tls(self) -> Tls:
        """The server's files."""
        folder = self.path.resolve()
        files = {name: folder / name for name in ("server.pem", "server.key", CA_FILE)}
        lacking = [str(path) for path in files.values() if not path.is_file()]
        if lacking:
            raise ConfigError(f"{', '.join(lacking)} missing: make the folder with `omnibus nats credentials`")
        return Tls(certificate=str(files["server.pem"]), key=str(files["server.key"]), ca=str(files[CA_FILE]))

    def _save(self, users: Sequence[User]) -> None:
        ordered = sorted(users, key=lambda user: user.name)
        write_private(self.path / _USERS_FILE, msgspec.json.format(msgspec.json.encode(ordered), indent=1))
        store = str(self.path.resolve() / "data")
        limits = profile_path("limits").read_text()
        text = server_config.production(self.users(), limits, listen=_LISTEN, store=store, tls=self.tls())
        write_private(self.path / CONFIG_FILE, text)


def _of_all(
    role: NatsRole, specs: Sequence[PipelineSpec], stages: Sequence[int], token: str, inbox: str
) -> Permissions:
    each = [permissions(role, spec, stages=stages, token=token, inbox=inbox) for spec in specs]
    publish = sorted({subject for one in each for subject in one.publish})
    subscribe = sorted({subject for one in each for subject in one.subscribe})
    return Permissions(tuple(publish), tuple(subscribe), any(one.answers for one in each))


def _new_seed() -> str:
    return bytes(nkeys.encode_seed(secrets.token_bytes(32), nkeys.PREFIX_BYTE_USER)).decode()


def _seed_in(path: Path) -> str:
    lines = [line for line in path.read_text().splitlines() if line.startswith("SU")]
    if not lines:
        raise ConfigError(f"{path} holds no nkey")
    return lines[0]
