"""The table of roles against a real server with TLS: each right of a role is allowed, and each right of others is refused.

No pipeline is deployed there, so that a right to remove a stream can be exercised.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import nats
import pytest
from nats.aio.client import Client

from omnibus.broker.nats_access import inbox_prefix, public_key
from omnibus.broker.roles import NatsRole, Permissions, covers, permissions
from omnibus.pipeline.loading import load_pipeline
from tests.support.guarded import Guarded, guarded_server

pytestmark = pytest.mark.integration

_DENIED = re.compile(r'permissions violation for (publish|subscription) to "([^"]+)"', re.IGNORECASE)
USERS = {
    "operator": (), "orchestrator": (), "frontdoor": (), "producer": (), "observer": (), "disconnects": (),
    "worker-0": (0,), "worker-1": (1,), "supervisor-0": (0,), "supervisor-1": (1,),
}  # fmt: skip


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with guarded_server(tmp_path_factory.mktemp("guarded")) as made:
        yield made


@dataclass
class Attempts:
    """Attempts of one user, and which of them the server refused (it names them; the client library in lower case)."""

    client: Client
    denied: set[tuple[str, str]] = field(default_factory=set)

    async def refused(self, publish: set[str], subscribe: set[str]) -> tuple[set[str], set[str]]:
        """Of the subjects to publish and to subscribe to, those that are refused."""
        for subject in publish:
            await self.client.publish(subject)
        for subject in subscribe:
            await self.client.subscribe(subject)
        for _ in range(2):  # the server answers in order, but the client's first ping may overtake what it has buffered
            await self.client.flush(20)
        assert self.client.stats["reconnects"] == 0
        return (
            {subject for subject in publish if ("publish", subject.lower()) in self.denied},
            {subject for subject in subscribe if ("subscription", subject.lower()) in self.denied},
        )


@asynccontextmanager
async def attempts(guarded: Guarded, user: str) -> AsyncIterator[Attempts]:
    made = Attempts(Client())

    async def note(error: Exception) -> None:
        if (found := _DENIED.search(str(error))) is not None:
            made.denied.add((found[1].lower(), found[2].lower()))

    options = guarded.access(user).options(user)
    made.client = await nats.connect(guarded.url, error_cb=note, connect_timeout=20, **options)
    try:
        yield made
    finally:
        await made.client.close()


def table(guarded: Guarded, user: str) -> Permissions:
    """The user's rights, from the table itself."""
    key = public_key((guarded.keys / f"{user}.nk").read_text().splitlines()[-1])
    role = NatsRole(user.split("-", maxsplit=1)[0])
    spec = load_pipeline(str(guarded.file))
    return permissions(role, spec, stages=USERS[user], token="producer", inbox=inbox_prefix(key))


def concrete(pattern: str) -> str:
    """A subject that a pattern takes, with names that nobody has."""
    ending = "x7.x8" if pattern.endswith(".>") else ""
    return ".".join("x9" if token == "*" else token for token in pattern.removesuffix(">").split(".") if token) + (
        f".{ending}" if ending else ""
    )


def allowed(patterns: tuple[str, ...], subject: str) -> bool:
    return any(covers(pattern, subject) for pattern in patterns)


@pytest.mark.parametrize("user", USERS)
async def test_server_allows_every_right_of_the_table_when_the_role_has_it(guarded: Guarded, user: str) -> None:
    own = table(guarded, user)
    async with attempts(guarded, user) as made:
        publish, subscribe = set(map(concrete, own.publish)), {*own.subscribe, *map(concrete, own.subscribe)}
        assert subscribe
        assert publish or user == "disconnects"
        assert await made.refused(publish, subscribe) == (set(), set())


@pytest.mark.parametrize("user", USERS)
async def test_server_refuses_every_right_of_others_when_the_role_lacks_it(guarded: Guarded, user: str) -> None:
    own = table(guarded, user)
    others = [table(guarded, other) for other in USERS if other != user]
    publish = {concrete(right) for other in others for right in other.publish}
    subscribe = {subject for other in others for right in other.subscribe for subject in (right, concrete(right))}
    publish = {subject for subject in publish if not allowed(own.publish, subject)}
    subscribe = {subject for subject in subscribe if not allowed(own.subscribe, subject)}
    assert min(len(publish), len(subscribe)) >= 10
    async with attempts(guarded, user) as made:
        refused = await made.refused(publish, subscribe)
        assert [subject for subject in publish if subject not in refused[0]] == []
        assert [subject for subject in subscribe if subject not in refused[1]] == []
