"""`omnibus doctor`: the examination of what is between this machine and its broker, with a remedy for each fault."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
import msgspec

from omnibus.cli import options
from omnibus.cli.machine_findings import certificate_findings, machine_findings
from omnibus.cli.port_finding import Finding

if TYPE_CHECKING:
    from omnibus.broker.connection import Connection
    from omnibus.broker.nats_access import Access
    from omnibus.broker.roles import Permissions
    from omnibus.cli.root import Wanted
    from omnibus.pipeline.spec import PipelineSpec

_MOST_SKEW = 1.0
_DENIED = "with these credentials the deployed pipelines cannot be read, so name the pipeline's file with --pipeline"


@click.command("doctor")
@click.option(
    "--role",
    type=click.Choice(options.NATS_ROLES),
    help="The role that the credentials are for; else what their file says.",
)
@click.option("--stage", "stages", multiple=True, metavar="ID|NAME", help="Stages of a worker or a supervisor.")
@options.pipeline
@options.broker
@options.as_json
def command(*, role: str | None, stages: tuple[str, ...], pipeline: Wanted, as_json: bool) -> int:
    """Examine the connection to NATS, credentials and what they permit, certificates, its version, streams and clock, and this
    machine: limits, shared memory, GPUs and ports.

    Exit code 1 when something is wrong; each fault comes with its remedy. Changes nothing.
    """
    from omnibus.cli.root import ask, load_settings  # noqa: PLC0415 commands import when they run

    return ask(_Examination(load_settings(), role, stages, pipeline).report(as_json=as_json))


class _Examination:
    """An examination of one broker, with the credentials of one role."""

    def __init__(self, settings: Any, role: str | None, stages: Sequence[str], pipeline: Wanted) -> None:
        self._settings, self._wanted, self._pipeline = settings, role, pipeline
        self._file = click.get_current_context().meta.get(options.PIPELINE_FILE)
        self._role, self._stages, self._token = role or "operator", list(stages), "producer"
        self._head: Mapping[str, str] = {}

    async def report(self, *, as_json: bool) -> int:
        """Print all findings; returns the exit code."""
        findings = []
        async for finding in self._findings():
            findings.append(finding)
            if not as_json:
                click.echo(f"{'ok   ' if finding.ok else 'FAULT'}  {finding.check}: {finding.text}")
        fine = all(finding.ok for finding in findings)
        if as_json:
            click.echo(json.dumps({"ok": fine, "findings": msgspec.to_builtins(findings)}, indent=2))
        return 0 if fine else 1

    async def _findings(self) -> AsyncIterator[Finding]:
        from omnibus.broker.connection import connect  # noqa: PLC0415
        from omnibus.broker.discovery import discover  # noqa: PLC0415
        from omnibus.broker.nats_access import without_password  # noqa: PLC0415
        from omnibus.errors import OmnibusError  # noqa: PLC0415

        found = discover(self._settings)
        try:
            self._take_head(found.access)
            async for finding in machine_findings(self._settings, self._role):
                yield finding
            for finding in certificate_findings(found.access):
                yield finding
            stage = self._stages[0] if self._stages else None
            role = self._wanted or "doctor"
            async with connect(
                found.url, name="omnibus-doctor", role=role, stage=stage, access=found.access
            ) as connection:
                yield Finding("connection", True, f"NATS answers at {without_password(found.url)}")
                async for finding in self._broker(connection, found.access, role, stage):
                    yield finding
        except OmnibusError as error:
            hint = "" if self._is_known(found.access) else "; or say which role to examine, as --role worker --stage 0"
            yield Finding("connection", False, f"{error.message}{hint}")

    def _is_known(self, access: Access) -> bool:
        """Whether it is clear which of several credentials are examined."""
        is_folder = access.credentials is not None and access.credentials.is_dir()
        return self._wanted is not None or not is_folder or access.has_role("doctor")

    def _take_head(self, access: Access) -> None:
        """Take role, stages and token from the head of the credentials file, where the command line does not say them."""
        self._head = access.described(self._wanted or "doctor", self._stages[0] if self._stages else None)
        self._role = self._wanted or self._head.get("role", self._role)
        self._stages = self._stages or [ref for ref in self._head.get("stages", "").split() if ref.isdecimal()]
        self._token = self._head.get("token", self._token)

    async def _broker(
        self, connection: Connection, access: Access, role: str, stage: str | None
    ) -> AsyncIterator[Finding]:
        from omnibus.broker.clock import ASK  # noqa: PLC0415

        answer = msgspec.json.decode((await connection.retried_request(ASK)).data)
        user = answer.get("data", {})
        yield _version(str(answer.get("server", {}).get("ver", "0.0")))
        yield _clock(connection)
        name = self._head.get("name") or user.get("user") or "no name"
        yield Finding(
            "credentials", True, f"user {name} of the account {user.get('account')}, examined as {self._role}"
        )
        specs, failure = await self._specs(connection)
        if failure is not None:
            yield failure
        prefix = str(access.options(role, stage).get("inbox_prefix", "_INBOX"))
        for spec in specs:
            for finding in self._permissions(spec, user.get("permissions"), prefix):
                yield finding
            yield await self._layout(connection, spec, user.get("permissions"))

    async def _specs(self, connection: Connection) -> tuple[list[PipelineSpec], Finding | None]:
        from omnibus.cli.root import find_pipeline  # noqa: PLC0415
        from omnibus.errors import BrokerDenied, OmnibusError  # noqa: PLC0415
        from omnibus.registry.deployed_pipelines import list_deployed  # noqa: PLC0415

        try:
            if self._pipeline is not None:
                return [await find_pipeline(connection, self._pipeline)], None
            specs = [deployed.spec for deployed in await list_deployed(connection)]
        except BrokerDenied:
            return [], Finding("pipelines", False, _DENIED)
        except OmnibusError as error:
            return [], Finding("pipelines", False, error.message)
        mine = self._head.get("pipelines", "").split()
        specs = [spec for spec in specs if not mine or spec.name in mine]
        return specs, None if specs else Finding("pipelines", True, "none is deployed: `omnibus pipeline deploy FILE`")

    def _permissions(self, spec: PipelineSpec, granted: Mapping[str, object] | None, inbox: str) -> Iterator[Finding]:
        """Compare what the server grants with the table of roles."""
        from omnibus.broker.roles import NatsRole, missing, permissions, rights  # noqa: PLC0415

        stages = [spec.stage(ref).stage_id for ref in self._stages] or [stage.stage_id for stage in spec.stages]
        user: Any = {"stages": stages, "token": self._token, "inbox": inbox}
        wanted = permissions(NatsRole(self._role), spec, **user)
        purposes, lacking = rights(NatsRole(self._role), spec, **user), missing(wanted, granted)
        for right in lacking:
            remedy = self._remedy(spec, stages)
            yield Finding(
                "permissions", False, f"may not {right}, which {self._role} of {spec.name} needs to "
                f"{purposes[right]}: where the server's credentials are made, run `{remedy}`",
            )  # fmt: skip
        if not lacking:
            yield Finding("permissions", True, f"all that {self._role} of {spec.name} needs{_count(wanted)}")

    def _remedy(self, spec: PipelineSpec, stages: Sequence[int]) -> str:
        """Return the commands that give this user the permissions of its role."""
        names = self._head.get("pipelines", spec.name).split()
        files = " ".join(f"--pipeline {self._file if self._file and name == spec.name else name}" for name in names)
        words = ["omnibus nats credentials", self._role, files]
        if self._role in ("worker", "supervisor"):
            words += [f"--stage {stage}" for stage in stages]
        if self._role == "producer":
            words.append(f"--token {self._token}")
        if "name" in self._head:
            words.append(f"--name {self._head['name']}")
        return f"{' '.join(words)} && nats-server --signal reload"

    async def _layout(
        self, connection: Connection, spec: PipelineSpec, granted: Mapping[str, object] | None
    ) -> Finding:
        """Compare streams, consumers and buckets with what the pipeline needs, as far as this user may look at them."""
        from omnibus.broker.layout import Layout, layout_of, plan  # noqa: PLC0415
        from omnibus.broker.roles import Permissions, missing  # noqa: PLC0415

        def visible(question: str) -> bool:
            return not missing(Permissions((f"$JS.API.{question}",), ()), granted)

        whole = layout_of(spec, replicas=self._settings.nats_replicas)
        seen = Layout(
            tuple(one for one in whole.streams if visible(f"STREAM.INFO.{one.name}")),
            tuple(one for one in whole.consumers if visible(f"CONSUMER.INFO.{one.stream}.{one.name}")),
        )
        if not seen.streams and not seen.consumers:
            return Finding("streams", True, f"not for {self._role} to see: ask as operator or observer")
        changes = await plan(connection, seen)
        if changes:
            listed = "; ".join(map(str, changes))
            return Finding(
                "streams", False, f"{spec.name} needs changes ({listed}): run `omnibus nats apply {spec.name}`"
            )
        hidden = len(whole.streams) + len(whole.consumers) - len(seen.streams) - len(seen.consumers)
        rest = f"; {hidden} more are not for {self._role} to see" if hidden else ""
        counts = f"{len(seen.streams)} streams and buckets, {len(seen.consumers)} consumers"
        return Finding("streams", True, f"{spec.name} has what it needs: {counts}{rest}")


def _version(found: str) -> Finding:
    from omnibus.broker.server_binary import OLDEST  # noqa: PLC0415

    parts = tuple(int(part) for part in found.split("-", maxsplit=1)[0].split(".")[:2] if part.isdecimal())
    wanted = ".".join(map(str, OLDEST))
    fine = parts >= OLDEST
    return Finding("server", fine, f"nats-server {found}" + ("" if fine else f": install {wanted} or newer"))


def _clock(connection: Connection) -> Finding:
    if not connection.clock.measured:
        return Finding("clock", False, "the server does not tell its time: deadlines go by the clock of each machine")
    skew = connection.clock.now() - time.time()
    remedy = "" if abs(skew) <= _MOST_SKEW else ": set both by NTP; deadlines go by the server's, certificates by both"
    return Finding("clock", not remedy, f"{abs(skew):.2f} s from the server's{remedy}")


def _count(wanted: Permissions) -> str:
    return f" ({len(wanted.publish)} to publish, {len(wanted.subscribe)} to subscribe)"
