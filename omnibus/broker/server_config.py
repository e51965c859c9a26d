"""Configuration files of nats-server, made as text: accounts with their users, and what an embedded server runs with. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from omnibus.broker.roles import NatsRole, Permissions

_INCLUDE = re.compile(r'^include "([^"]+)"$', re.MULTILINE)
_ACCOUNTS = "accounts.conf"
_ANSWERS = '{ max: 4096, expires: "6m" }'
"""Answers to one question, and for how long: a call of an engine may take five minutes, a long text has many pages."""

_PRODUCTION = """\
# production: TLS for everybody, an nkey for every process, least privilege. Made by `omnibus nats credentials`, from the one
# table in omnibus/broker/roles.py; the shipped one is for omni-tiny, with its keys and files named by variables.
#
# Data is flushed to the disk every second, as with balanced.conf, and the same holds of what a kill or a power loss can cost.
# Users are taken over while it runs: nats-server --signal reload

server_name: omnibus
listen: {listen}

jetstream {{
  store_dir: {store}
  sync_interval: "1s"
}}

tls {{
  cert_file: {certificate}
  key_file: {key}
  ca_file: {ca}
  verify: {verify}  # clients without a certificate of that authority are turned away
  min_version: "1.2"
}}

"""


class User(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A user of an account, known by its public nkey or by a password."""

    name: str
    role: NatsRole | None = None
    """None: an operator of everything, such as the processes of `omnibus serve` are."""
    permissions: Permissions | None = None
    nkey: str = ""
    user: str = ""
    password: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Files of a server, as they are written into its configuration."""

    certificate: str
    key: str
    ca: str
    verify: bool = True


def production(users: Sequence[User], limits: str, *, listen: str, store: str, tls: Tls) -> str:
    """The configuration of a server for production; `limits` is the text of limits.conf."""
    head = _PRODUCTION.format(
        listen=_quoted(listen), store=_quoted(store), certificate=_quoted(tls.certificate), key=_quoted(tls.key),
        ca=_quoted(tls.ca), verify=str(tls.verify).lower(),
    )  # fmt: skip
    return f"{head}{limits.rstrip()}\n\n{accounts(users)}"


def embedded(profile: Path, *, store: Path, users: Sequence[User], tls: Tls | None) -> str:
    """A profile with all that it includes and refers to, in one text."""
    variables = f"OMNIBUS_NATS_STORE: {_quoted(str(store))}\n"
    text = _INCLUDE.sub(lambda found: _included(profile.parent, found[1], users), profile.read_text())
    encryption = "" if tls is None else (
        f"\ntls {{ cert_file: {_quoted(tls.certificate)}, key_file: {_quoted(tls.key)}, ca_file: {_quoted(tls.ca)} }}\n"
    )  # fmt: skip
    return f"{variables}{text}{encryption}"


def accounts(users: Iterable[User]) -> str:
    """The two accounts: OMNI, which holds all streams, and SYS, which tells of lost connections."""
    known = tuple(users)
    system = [_user(user) for user in known if user.role is NatsRole.DISCONNECTS]
    ours = [_user(user) for user in known if user.role is not NatsRole.DISCONNECTS]
    return (
        "accounts {\n"
        f"  OMNI {{\n    jetstream: enabled\n    users: [\n{''.join(ours)}    ]\n  }}\n"
        f"  SYS {{\n    users: [\n{''.join(system)}    ]\n  }}\n"
        "}\n"
        "system_account: SYS\n"
    )


def _included(folder: Path, name: str, users: Sequence[User]) -> str:
    return accounts(users) if name == _ACCOUNTS else (folder / name).read_text()


def _user(user: User) -> str:
    known_by = f"nkey: {user.nkey}" if user.nkey else f"user: {user.user}, password: {_quoted(user.password)}"
    lines = [f"      # {user.name}", "      {", f"        {known_by}"]
    if user.permissions is not None:
        lines += ["        permissions {", *_rules(user.permissions), "        }"]
    return "\n".join([*lines, "      }", ""])


def _rules(allowed: Permissions) -> Iterable[str]:
    publish = ["publish { allow: ["] if allowed.publish else ['publish { deny: [ ">"']
    yield f"          {publish[0]}"
    yield from (f"            {_quoted(subject)}" for subject in allowed.publish)
    yield "          ] }"
    yield "          subscribe { allow: ["
    yield from (f"            {_quoted(subject)}" for subject in allowed.subscribe)
    yield "          ] }"
    if allowed.answers:
        yield f"          allow_responses {_ANSWERS}"


def _quoted(text: str) -> str:
    """A value as nats-server reads it: quoted, unless it is one of its variables."""
    return text if text.startswith("$") and text[1:].isidentifier() else json.dumps(text)
