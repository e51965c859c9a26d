"""Deployed pipelines: their specifications in a bucket, so that a worker needs only a stage.

A specification is stored as MessagePack under its name; the entry's revision tells one deployment from the next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import msgspec
from msgspec.structs import replace

from omnibus.broker.bucket import Bucket, BucketEntry, transact
from omnibus.broker.connection import Connection
from omnibus.broker.layout import Change, ensure_layout, layout_of, own_streams
from omnibus.errors import PipelineError
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.pipeline.engines import engine_kind
from omnibus.pipeline.spec import PipelineSpec, StageSpec
from omnibus.pipeline.validation import validate
from omnibus.registry.presence.replica_record import read_replicas
from omnibus.wire import stores
from omnibus.wire.names import check_name, is_name

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Deployed:
    """A pipeline as it is deployed."""

    spec: PipelineSpec
    revision: int


@dataclass(frozen=True, slots=True)
class Deployment:
    """The outcome of `deploy_pipeline`."""

    deployed: Deployed
    changes: tuple[Change, ...]
    """Changes to the broker's layout."""
    stored: bool
    """Whether the specification is new; False: this very one was deployed already."""
    replicas: int = 0
    """Replicas that are registered, and run what was deployed when they were started."""


async def deploy_pipeline(connection: Connection, spec: PipelineSpec, *, replicas: int = 1) -> Deployment:
    """Lay the broker out for a pipeline, with so many copies of everything, and store its specification last.

    The paths of interpreters stay here: they mean nothing on another machine. LoRA adapters that were added while the pipeline
    ran stay with it.
    Idempotent: the same specification keeps its revision. Nothing is deleted: what a former version needed stays.
    Raises PipelineError for a senseless specification, BrokerRefused for a setting that cannot be changed in place,
    BrokerUnavailable.
    """
    validate(spec)
    spec = spec.without_interpreters()
    changes = tuple(await ensure_layout(connection, layout_of(spec, replicas=replicas)))
    deployed, stored = await _store(Bucket(connection, stores.PIPELINES_BUCKET), spec)
    if not stored:
        return Deployment(deployed, changes, stored=False)
    log.info(LogEvent.PIPELINE_DEPLOYED, pipeline=spec.name, revision=deployed.revision)
    return Deployment(deployed, changes, stored=True, replicas=await count_replicas(connection, spec.name))


async def _store(bucket: Bucket, given: PipelineSpec) -> tuple[Deployed, bool]:
    """Store a specification, with what stays of the one before; returns what is deployed now, and whether that is new."""

    async def attempt() -> tuple[Deployed, bool]:
        found = await bucket.get_latest(given.name)
        former = read_pipeline(given.name, found.value) if found is not None else None
        spec = _with_added_adapters(given, former) if former is not None else given
        data = msgspec.msgpack.encode(spec)
        if found is None:
            return Deployed(spec, await bucket.create(given.name, data)), True
        if found.value == data:
            return Deployed(spec, found.revision), False
        return Deployed(spec, await bucket.update(given.name, data, found.revision)), True

    return await transact(attempt, f"pipeline {given.name!r}")


def _with_added_adapters(spec: PipelineSpec, former: PipelineSpec) -> PipelineSpec:
    """The specification with the adapters that were added to stages of the former one, where they take adapters still."""

    def kept(stage: StageSpec) -> StageSpec:
        before = former.by_ref.get(stage.stage_id)
        if before is None or not engine_kind(stage.engine).loads_adapters(stage.engine_args):
            return stage
        return replace(stage, added_adapters={**stage.added_adapters, **before.added_adapters})

    return replace(spec, stages=tuple(map(kept, spec.stages)))


async def count_replicas(connection: Connection, pipeline: str) -> int:
    """The number of replicas that are registered; those that left or were declared down count for nothing."""
    return sum(record.alive for record in await read_replicas(connection, pipeline))


async def delete_pipeline(connection: Connection, spec: PipelineSpec, *, force: bool = False) -> None:
    """Remove a deployed pipeline: first its specification, so that nothing more is admitted, then all that it has alone.

    Raises PipelineError while requests of it are open or replicas of it are up, and then nothing is removed; with `force`
    requests end with it, without a word, and replicas stay without work. Its answers and dead letters go in any case; files,
    batches and videos stay. Raises BrokerUnavailable; idempotent.
    """
    bucket = Bucket(connection, stores.PIPELINES_BUCKET)
    found = await bucket.get(spec.name)
    if found is not None and not force and (up := await count_replicas(connection, spec.name)):
        raise PipelineError(
            f"pipeline {spec.name!r} is served: {up} replica{'s are' if up > 1 else ' is'} up; "
            "end `omnibus serve` and its workers first; see --force"
        )
    if found is not None:
        await bucket.delete(spec.name, found.revision)
    queued = 0 if force else await _queued(connection, spec.name)
    if queued and found is not None:
        await bucket.create(spec.name, found.value)
    if queued:
        raise PipelineError(f"pipeline {spec.name!r} has open requests: {queued} messages are queued; see --force")
    for stream in own_streams(spec):
        await connection.find(f"STREAM.DELETE.{stream}")
    log.info(LogEvent.PIPELINE_DELETED, pipeline=spec.name)


async def _queued(connection: Connection, pipeline: str) -> int:
    streams = (stores.work_stream(pipeline), stores.requests_stream(pipeline))
    found = [await connection.find(f"STREAM.INFO.{stream}") for stream in streams]
    return sum(int(info["state"]["messages"]) for info in found if info is not None)


async def load_deployed(connection: Connection, name: str | None = None) -> PipelineSpec:
    """The deployed pipeline of this name; without a name the only one there is, or the only one that has replicas.

    Raises PipelineError, listing what is deployed, when there is no such one or the choice is not clear.
    """
    if name is not None:
        entry = await _read(connection, check_name(name, "pipeline"))
        if entry is not None:
            return _checked(name, entry.value)
    deployed = [found.spec for found in await list_deployed(connection)]
    if name is None and len(deployed) > 1:
        deployed = [spec for spec in deployed if await count_replicas(connection, spec.name)] or deployed
    if name is None and len(deployed) == 1:
        return deployed[0]
    raise PipelineError(_advice(name, [spec.name for spec in deployed]))


async def find_deployed(connection: Connection, name: str) -> PipelineSpec | None:
    """The pipeline as the last writer left it; None where none is deployed that is valid here."""
    if not await _is_laid_out(connection):
        return None
    entry = await Bucket(connection, stores.PIPELINES_BUCKET).get_latest(name)
    return read_pipeline(name, entry.value) if entry is not None else None


async def change_deployed(
    connection: Connection, name: str, change: Callable[[PipelineSpec], PipelineSpec]
) -> PipelineSpec:
    """Replace a deployed specification by what `change` makes of it; what that raises leaves it as it is.

    Raises PipelineError where there is none.
    """
    bucket = Bucket(connection, stores.PIPELINES_BUCKET)

    async def attempt() -> PipelineSpec:
        entry = await bucket.get_latest(name)
        if entry is None:
            raise PipelineError(_advice(name, []))
        spec = change(_checked(name, entry.value))
        await bucket.update(name, msgspec.msgpack.encode(spec), entry.revision)
        return spec

    return await transact(attempt, f"pipeline {name!r}")


async def list_deployed(connection: Connection) -> list[Deployed]:
    """All deployed pipelines, by name; those that are not valid here are left out, with a warning."""
    if not await _is_laid_out(connection):
        return []
    bucket = Bucket(connection, stores.PIPELINES_BUCKET)
    names = [key for key in await bucket.keys() if is_name(key)]  # stages' pause states are beside them
    entries = [entry for name in names if (entry := await bucket.get(name)) is not None]
    found = ((read_pipeline(entry.key, entry.value), entry.revision) for entry in entries)
    return [Deployed(spec, revision) for spec, revision in found if spec is not None]


async def _read(connection: Connection, name: str) -> BucketEntry | None:
    return await Bucket(connection, stores.PIPELINES_BUCKET).get(name) if await _is_laid_out(connection) else None


async def _is_laid_out(connection: Connection) -> bool:
    """Whether there is a bucket of pipelines. A read from none looks like an outage, and is retried for seconds."""
    return await connection.find(f"STREAM.INFO.KV_{stores.PIPELINES_BUCKET}") is not None


@lru_cache(maxsize=256)
def read_pipeline(name: str, data: bytes) -> PipelineSpec | None:
    """The specification that is stored under a name; None, with a warning, for one that is not as valid as a file must be.

    So one bad entry disturbs neither the others nor anybody who reads them. Read again, the same entry costs nothing.
    """
    try:
        return _checked(name, data)
    except PipelineError as error:
        log.warning(LogEvent.PIPELINE_UNREADABLE, pipeline=name, error=error.message)
        return None


def _checked(name: str, data: bytes) -> PipelineSpec:
    try:
        spec = msgspec.msgpack.decode(data, type=PipelineSpec)
        validate(spec)
    except (PipelineError, msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise PipelineError(f"the entry {name!r} cannot be read: {error}") from error
    if spec.name != name:
        raise PipelineError(f"the entry {name!r} holds another pipeline", field="name")
    return spec


def _advice(name: str | None, deployed: list[str]) -> str:
    if name is None and deployed:
        return f"several pipelines are deployed, so name one (commands: --pipeline NAME): {', '.join(deployed)}"
    which = "no pipeline is deployed" if name is None else f"pipeline {name!r} is not deployed"
    listed = f"; deployed are {', '.join(deployed)}" if deployed else ""
    return f"{which}{listed}; run `omnibus pipeline deploy` or `omnibus serve` first"
