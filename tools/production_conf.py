"""The shipped `nats/production.conf`, made from the table of roles: `python -m tools.production_conf > nats/production.conf`."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from omnibus.broker import server_config
from omnibus.broker.roles import NatsRole, Permissions, permissions
from omnibus.broker.server_binary import profile_path
from omnibus.broker.server_config import Tls, User
from omnibus.pipeline.loading import load_pipeline

PIPELINE = "omni-tiny"
_INBOX = "_INBOX"
_TLS = Tls(certificate="$OMNIBUS_NATS_TLS_CERT", key="$OMNIBUS_NATS_TLS_KEY", ca="$OMNIBUS_NATS_TLS_CA")


def text() -> str:
    """Return the whole file: its users' keys and inboxes, and the server's paths, are variables."""
    users = sorted(_users(), key=lambda user: user.name)
    return server_config.production(
        users, profile_path("limits").read_text(), listen="0.0.0.0:4222", store="$OMNIBUS_NATS_STORE", tls=_TLS
    )


def variables(name: str) -> tuple[str, str]:
    """The variables of a user's public nkey and of the subjects that answers to it come on."""
    spelled = name.upper().replace("-", "_")
    return f"OMNIBUS_NATS_USER_{spelled}", f"OMNIBUS_NATS_INBOX_{spelled}"


def _users() -> Iterator[User]:
    spec = load_pipeline(PIPELINE)
    for role in NatsRole:
        per_stage = role in (NatsRole.WORKER, NatsRole.SUPERVISOR)
        for stages in [[stage.stage_id] for stage in spec.stages] if per_stage else [[]]:
            name = "-".join([role.value, *map(str, stages)])
            key, inbox = variables(name)
            allowed = permissions(role, spec, stages=stages, token="producer", inbox=_INBOX)
            yield User(name=name, role=role, nkey=f"${key}", permissions=_with_variable(allowed, f"${inbox}"))


def _with_variable(allowed: Permissions, inbox: str) -> Permissions:
    """The variable stands for the whole subject: nats-server replaces no part of one."""
    hears = tuple(inbox if subject == f"{_INBOX}.>" else subject for subject in allowed.subscribe)
    return Permissions(allowed.publish, hears, allowed.answers)


if __name__ == "__main__":
    sys.stdout.write(text())
