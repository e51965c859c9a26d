"""The proof of who a process is to nats-server: a password, an nkey or a JWT in a file, and certificates for TLS.

Credentials are named by path, never given on a command line, where other users of the machine could read them.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from omnibus.errors import ConfigError
from omnibus.settings import Settings

SEED_SUFFIX = ".nk"
"""Files of a credentials folder that hold an nkey: one an account user."""
CA_FILE = "ca.pem"
"""The certificate authority, beside the credentials."""

CREDENTIALS_FILE = "nats.credentials"
"""The user and password of an embedded server, in its state directory: for this machine's own processes, and for copies."""
SYSTEM_ROLE = "disconnects"
"""The role of the system account's user, who hears which clients are gone."""

_HEADER = re.compile(r"^# (\w+): (.*)$", re.MULTILINE)
_SEED = re.compile(r"^SU[A-Z2-7]{56}$", re.MULTILINE)
_PASSWORD = re.compile(r"^([^\s:#]+):(\S+)$", re.MULTILINE)
_ROLES: Mapping[str, tuple[str, ...]] = {
    "submit": ("frontdoor", "operator"), "cancel": ("frontdoor", "operator"), "client": ("frontdoor", "operator"),
    "chat": ("frontdoor", "operator"), "requests": ("frontdoor", "operator"), "queue": ("frontdoor", "operator", "observer"),
    "status": ("observer", "operator"), "list": ("observer", "operator"), "doctor": ("operator", "observer"),
}  # fmt: skip
"""Roles that may do what a command does, the least one first; a command that is not here needs its own or the operator's."""
_NAMED = ("frontdoor", "orchestrator", "worker", "supervisor", "producer", "observer")
"""Roles that commands may be asked to take; other commands have none of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Paths to what a process proves itself with; without any, the URL's user and password count."""

    credentials: Path | None = None
    """A file, or a folder with a file for each role."""
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The access that the settings describe."""
        return cls(
            credentials=settings.nats_credentials, ca=settings.nats_tls_ca,
            certificate=settings.nats_tls_cert, key=settings.nats_tls_key,
        )  # fmt: skip

    def has_role(self, role: str) -> bool:
        """Whether the credentials are a folder that has a file for this role."""
        try:
            return self.credentials is not None and self.credentials.is_dir() and self._file(role, None) is not None
        except ConfigError:
            return False

    def described(self, role: str, stage: str | None = None) -> Mapping[str, str]:
        """The head of the file in use: name, role, pipelines, stages, token; empty where none was made by us."""
        path = self._file(role, stage)
        return {} if path is None else _described(path)

    def options(self, role: str, stage: str | None = None) -> dict[str, Any]:
        """Options of the client library; raises ConfigError, which names the file and what is wrong with it.

        `role` and `stage` choose the file where the credentials are a folder. An nkey has its own inbox prefix, so that no
        user can listen to what another is answered.
        """
        path = self._file(role, stage)
        signed: dict[str, Any] = {"inbox_prefix": f"_INBOX_{role}"}
        if path is not None:
            signed |= _signed(path, _read(path, "OMNIBUS_NATS_CREDENTIALS"))
        context = self._tls(path)
        return signed if context is None else {**signed, "tls": context}

    def _file(self, role: str, stage: str | None) -> Path | None:
        folder = self.credentials
        if folder is None or not folder.is_dir():
            return folder
        files = {path: _described(path) for path in sorted(folder.glob(f"*{SEED_SUFFIX}"))}
        fitting = _ROLES.get(role) or ((role,) if stage is not None or role == SYSTEM_ROLE else _own(role))
        for wanted in fitting:
            for path, about in files.items():
                if about.get("role") == wanted and (stage is None or stage in about.get("stages", "").split()):
                    return path
        which = " or ".join(fitting) + (f" of stage {stage}" if stage is not None else "")
        make = f"{fitting[0]} --stage {stage}" if stage is not None else fitting[0]
        there = ", ".join(path.name for path in files) or f"no file *{SEED_SUFFIX}"
        raise ConfigError(
            f"OMNIBUS_NATS_CREDENTIALS names {folder}, where nothing is for the role {which} (there: {there}): copy it from "
            f"where the server's credentials are, or make it there with `omnibus nats credentials {make} …`"
        )

    def certificates(self) -> list[Path]:
        """The files of certificates that are named, and those beside the credentials; they may be missing."""
        named = [path for path in (self.ca, self.certificate) if path is not None]
        folder = self.credentials
        if folder is None:
            return named
        in_file = [folder.with_name(CA_FILE), folder.with_suffix(".pem")]
        beside = sorted(folder.glob("*.pem")) if folder.is_dir() else [path for path in in_file if path.is_file()]
        return list(dict.fromkeys((*named, *beside)))

    def _tls(self, credentials: Path | None) -> ssl.SSLContext | None:
        """A client context where a certificate authority or a certificate is known; a tls:// URL needs none."""
        beside = credentials.with_name(CA_FILE) if credentials is not None else None
        ca = self.ca if self.ca is not None or beside is None or not beside.is_file() else beside
        certificate, key = self.certificate, self.key
        if certificate is None and credentials is not None and credentials.with_suffix(".pem").is_file():
            certificate, key = credentials.with_suffix(".pem"), credentials.with_suffix(".key")
        if ca is None and certificate is None:
            return None
        if (certificate is None) != (key is None):
            raise ConfigError("OMNIBUS_NATS_TLS_CERT and OMNIBUS_NATS_TLS_KEY belong together: give both or none")
        try:
            context = ssl.create_default_context(cafile=ca)
            if certificate is not None:
                context.load_cert_chain(certificate, key)
        except (OSError, ssl.SSLError) as error:
            named = ", ".join(str(path) for path in (ca, certificate, key) if path is not None)
            raise ConfigError(f"cannot use the TLS files {named}: {error}", param="nats_tls_ca") from error
        return context


NO_ACCESS = Access()
"""No access of its own: the user and the password of the URL count."""


def without_password(url: str) -> str:
    """A URL as logs and people may see it."""
    return re.sub(r"//[^@/,]*@", "//", url)


def write_private(path: Path, data: str | bytes) -> None:
    """Write a file that its owner alone can read, in place of another."""
    scratch = path.with_name(f"{path.name}.{os.getpid()}")
    scratch.touch(mode=0o600)
    scratch.write_bytes(data.encode() if isinstance(data, str) else data)
    scratch.replace(path)


def inbox_prefix(public_key: str) -> str:
    """Subjects that answers to one user come on."""
    return f"_INBOX_{public_key[:20]}"


def public_key(seed: str) -> str:
    """The public half of an nkey; raises ConfigError when it is none."""
    import nkeys  # noqa: PLC0415 3 MiB, for those who sign in with one

    try:
        pair = nkeys.from_seed(seed.encode())
        return bytes(pair.public_key).decode()
    except (nkeys.NkeysError, ValueError) as error:
        raise ConfigError("not the seed of an nkey") from error


def _own(role: str) -> tuple[str, ...]:
    return (role, "operator") if role in _NAMED else ("operator",)


def _signed(path: Path, text: str) -> dict[str, Any]:
    if "BEGIN NATS USER JWT" in text:
        return {"user_credentials": str(path)}
    if (seed := _SEED.search(text)) is not None:
        return {"nkeys_seed_str": seed[0], "inbox_prefix": inbox_prefix(public_key(seed[0]))}
    if (password := _PASSWORD.search(text)) is not None:
        return {"user": password[1], "password": password[2]}
    raise ConfigError(
        f"OMNIBUS_NATS_CREDENTIALS names {path}, which holds no credentials: it must be the seed of an nkey (SU…), "
        "a .creds file, or one line user:password"
    )


def _described(path: Path) -> dict[str, str]:
    """The comment at the head of a credentials file."""
    return dict(_HEADER.findall(_read(path, "OMNIBUS_NATS_CREDENTIALS")))


def _read(path: Path, setting: str) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no text"
        raise ConfigError(f"{setting} names {path}, which cannot be read: {reason}") from error
