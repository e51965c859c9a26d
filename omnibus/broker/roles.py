"""The roles of processes on the broker, and what each may publish and subscribe to: the one table of permissions. Pure.

Everything else is refused. `nats/production.conf`, `omnibus nats credentials` and `omnibus doctor` are made from it. In the
answers of JetStream's API the subject is the right: `$JS.API.CONSUMER.MSG.NEXT.<stream>.<consumer>` is to take messages from one
consumer, and a body can ask for nothing that its subject does not name. Where a body could (`DIRECT.GET` without a subject,
`STREAM.MSG.GET`, `STREAM.PURGE`), only roles that may see all of the stream have it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from omnibus.broker.nats_access import SYSTEM_ROLE
from omnibus.pipeline.policies import LoadBalancingPolicy
from omnibus.pipeline.route import Forwarding
from omnibus.pipeline.spec import PipelineSpec
from omnibus.wire import subjects

MOST_DIRECTED = 32
"""Replicas of a directed stage that a worker's permissions name: consumers have no wildcards within a name."""
_API = "$JS.API"


class NatsRole(StrEnum):
    """The roles of processes on the broker."""

    OPERATOR = "operator"
    """Deploys pipelines, pauses and restarts replicas, and may do what a front door does."""
    ORCHESTRATOR = "orchestrator"
    FRONTDOOR = "frontdoor"
    """The HTTP server, `omnibus submit` and the Python client: they admit requests."""
    WORKER = "worker"
    """A replica of named stages."""
    SUPERVISOR = "supervisor"
    """Reports deaths of replicas of named stages, and gives their tasks back."""
    PRODUCER = "producer"
    """Publishes raw requests under a token of its own, and reads what becomes of them."""
    OBSERVER = "observer"
    """Sees replicas, queues and pauses; no request."""
    DISCONNECTS = SYSTEM_ROLE
    """In the system account: hears which clients are gone, for orchestrators."""


@dataclass(frozen=True, slots=True)
class Permissions:
    """Subjects, in NATS' syntax."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    answers: bool = False
    """Whether it may answer what it is asked, on the reply subject of the question."""


def permissions(
    role: NatsRole, spec: PipelineSpec, *, stages: Sequence[int] = (), token: str = "", inbox: str
) -> Permissions:
    """The permissions of a user on one pipeline.

    `stages` are those of a worker or a supervisor, `token` is what a producer listens to (`Omni-Reply`), `inbox` the prefix
    of the user's answers.
    """
    table = _Table(spec)
    asks, hears, answers = table.of(role, stages, token)
    if role is NatsRole.DISCONNECTS:
        return Permissions((), (*hears, f"{inbox}.>"))
    return Permissions(_sorted(("$SYS.REQ.USER.INFO", *asks)), _sorted((f"{inbox}.>", *hears)), answers)


def _sorted(found: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted(set(found)))


class _Table:
    """The table for one pipeline."""

    def __init__(self, spec: PipelineSpec) -> None:
        self._spec, self._name = spec, spec.name
        self._work = subjects.work_stream(spec.name)
        self._requests = subjects.requests_stream(spec.name)
        self._replicas = subjects.replicas_bucket(spec.name)
        self._ledger = subjects.requests_bucket(spec.name)
        self._stores = (subjects.payloads_bucket(spec.name), subjects.dead_payloads_bucket(spec.name))

    def of(self, role: NatsRole, stages: Sequence[int], token: str) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
        """Publish, subscribe, and whether answers are allowed."""
        name, root = self._name, f"omni.{self._name}"
        match role:
            case NatsRole.OPERATOR:
                return (*self._operator(),), (f"{root}.out.*.*",), True
            case NatsRole.ORCHESTRATOR:
                hears = (subjects.ctl_all(name), subjects.claims(name), subjects.questions(name, "*"))
                return (*self._orchestrator(),), hears, True
            case NatsRole.FRONTDOOR:
                return (*self._frontdoor(),), (f"{root}.out.*.*",), True
            case NatsRole.WORKER:
                asks = tuple(subject for stage in stages for subject in self._worker(stage))
                own = (f"{root}.ctl.{stage}.*" for stage in stages)
                ask = (f"{root}.ask.{stage}.*" for stage in stages)
                return asks, (subjects.ctl_all(name), subjects.ask_all(name), *own, *ask), True
            case NatsRole.SUPERVISOR:
                asks = tuple(subject for stage in stages for subject in self._supervisor(stage))
                return asks, (subjects.claims(name),), False
            case NatsRole.PRODUCER:
                return (*self._producer(),), (f"{root}.out.{token}.*",), True
            case NatsRole.OBSERVER:
                return (*self._observer(),), (), False
            case NatsRole.DISCONNECTS:
                return (), (subjects.disconnects("OMNI"),), False

    # By role

    def _operator(self) -> Iterator[str]:
        yield from self._frontdoor()
        yield from self._observer()
        name = self._name
        yield f"$KV.{subjects.PIPELINES_BUCKET}.{name}"
        yield f"$KV.{subjects.PIPELINES_BUCKET}.{name}.>"
        yield f"omni.{name}.ctl.*.*"
        for stream in (*self._streams(), f"KV_{subjects.PIPELINES_BUCKET}"):
            yield from (f"{_API}.STREAM.{verb}.{stream}" for verb in ("CREATE", "UPDATE"))
        for stream in self._streams():
            yield f"{_API}.STREAM.DELETE.{stream}"
        for stream in (self._work, self._requests):
            yield f"{_API}.CONSUMER.CREATE.{stream}.*"

    def _orchestrator(self) -> Iterator[str]:
        root, work = f"omni.{self._name}", self._work
        yield from self._take(work, subjects.EVENTS_CONSUMER)
        yield from self._take(self._requests, subjects.REQUESTS_CONSUMER)
        yield f"$JS.ACK.{work}.>"  # a dead replica's tasks are returned
        yield from (f"{root}.task.*.*.*", f"{root}.event.*.attempt.*", f"{root}.timer.*", f"{root}.out.*.*")
        yield from (subjects.ctl_all(self._name), subjects.ask_all(self._name))
        yield from self._write_records()
        yield f"$KV.{self._replicas}.*.*"
        yield from self._read_bucket(self._replicas)
        yield from self._read_pipeline()
        yield _watch(subjects.PIPELINES_BUCKET, self._name)
        for verb in ("INFO", "PURGE", "MSG.GET", "MSG.DELETE"):
            yield f"{_API}.STREAM.{verb}.{work}"
        yield f"{_API}.DIRECT.GET.{work}"
        yield f"{_API}.CONSUMER.INFO.{work}.*"
        yield f"{_API}.CONSUMER.CREATE.{work}.*"  # of replicas' own lanes

    def _frontdoor(self) -> Iterator[str]:
        root = f"omni.{self._name}"
        yield from (f"{root}.task.{entry}.*.*" for entry in self._entries())
        yield from (f"{root}.timer.*", f"{root}.out.*.*")
        yield from (subjects.ctl_all(self._name), subjects.ask_all(self._name))
        yield from self._write_records()
        yield from self._read_bucket(self._replicas)
        yield from self._read_bucket(subjects.PIPELINES_BUCKET)
        for stream in (self._work, self._requests):
            yield from (f"{_API}.STREAM.{verb}.{stream}" for verb in ("INFO", "PURGE", "MSG.GET"))
            yield from (f"{_API}.CONSUMER.INFO.{stream}.*", f"{_API}.CONSUMER.LIST.{stream}")

    def _worker(self, stage: int) -> Iterator[str]:
        root = f"omni.{self._name}"
        for lane in self._lanes(stage):
            yield from self._take(self._work, subjects.stage_consumer(stage, lane))
        for kind in ("result", "final", "failed", "attempt"):
            yield f"{root}.event.{stage}.{kind}.*"
        for target in (stage, *self._direct_targets(stage)):  # its own: what it returns
            yield f"{root}.task.{target}.*.*"
        yield from (f"{root}.out.*.*", f"{root}.claim.{stage}.*", subjects.questions(self._name, "orphans"))
        yield f"$KV.{self._replicas}.{stage}.*"
        yield from (_get(self._replicas, f"{stage}.*"), f"{_API}.STREAM.MSG.GET.KV_{self._replicas}")
        yield from self._read_pipeline()
        yield _watch(subjects.PIPELINES_BUCKET, subjects.pause_key(self._name, stage))
        if any(self._directed(target) for target in self._direct_targets(stage)):
            yield _watch(self._replicas, ">")
        yield from self._payloads(self._stores[0])

    def _supervisor(self, stage: int) -> Iterator[str]:
        root = f"omni.{self._name}"
        yield from (f"$JS.ACK.{self._work}.{subjects.stage_consumer(stage, lane)}.>" for lane in self._lanes(stage))
        yield f"{_API}.DIRECT.GET.{self._work}.{root}.task.{stage}.*.*"
        yield from (f"{root}.event.{stage}.attempt.*", f"{root}.ask.{stage}.*", subjects.ask_all(self._name))
        yield from (f"$KV.{self._replicas}.{stage}.*", _get(self._replicas, f"{stage}.*"), _watch(self._replicas, ">"))
        yield from self._read_pipeline()

    def _producer(self) -> Iterator[str]:
        """Records and payloads can be read by id; ids of others cannot be listed."""
        yield subjects.requests_filter(self._name)
        yield subjects.ask_all(self._name)
        yield _get(self._ledger, "*")
        store = self._stores[0]
        yield from (f"{_API}.DIRECT.GET.OBJ_{store}", f"{_API}.DIRECT.GET.OBJ_{store}.$O.{store}.M.*")

    def _observer(self) -> Iterator[str]:
        for bucket in (self._replicas, subjects.PIPELINES_BUCKET):
            yield from self._read_bucket(bucket)
        for stream in self._streams():
            yield f"{_API}.STREAM.INFO.{stream}"
        for stream in (self._work, self._requests):
            yield from (f"{_API}.CONSUMER.INFO.{stream}.*", f"{_API}.CONSUMER.LIST.{stream}")

    # Parts of several roles

    def _take(self, stream: str, consumer: str) -> Iterator[str]:
        """Take messages from one consumer, and answer them."""
        yield f"{_API}.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        yield f"{_API}.CONSUMER.INFO.{stream}.{consumer}"
        yield f"$JS.ACK.{stream}.{consumer}.>"

    def _write_records(self) -> Iterator[str]:
        """Read and write the ledger, and what is stored for requests."""
        yield f"$KV.{self._ledger}.>"
        yield from (_get(self._ledger, ">"), f"{_API}.STREAM.MSG.GET.KV_{self._ledger}")
        yield f"{_API}.STREAM.INFO.KV_{self._ledger}"
        for store in self._stores:
            yield from self._payloads(store)
            yield from (f"{_API}.STREAM.{verb}.OBJ_{store}" for verb in ("INFO", "PURGE"))

    def _payloads(self, store: str) -> Iterator[str]:
        yield from (f"$O.{store}.C.>", f"$O.{store}.M.*")
        yield from (f"{_API}.DIRECT.GET.OBJ_{store}", f"{_API}.DIRECT.GET.OBJ_{store}.$O.{store}.M.*")

    def _read_bucket(self, bucket: str) -> Iterator[str]:
        yield from (_watch(bucket, keys) for keys in (">", "*"))
        yield from (_get(bucket, ">"), f"{_API}.STREAM.MSG.GET.KV_{bucket}", f"{_API}.STREAM.INFO.KV_{bucket}")

    def _read_pipeline(self) -> Iterator[str]:
        """All deployed pipelines may be read: a command need not name one."""
        bucket = subjects.PIPELINES_BUCKET
        yield from (_get(bucket, ">"), f"{_API}.STREAM.INFO.KV_{bucket}", f"{_API}.STREAM.MSG.GET.KV_{bucket}")

    def _streams(self) -> tuple[str, ...]:
        buckets = (f"KV_{self._replicas}", f"KV_{self._ledger}", *(f"OBJ_{store}" for store in self._stores))
        return (self._work, self._requests, subjects.chunks_stream(self._name), *buckets)

    def _entries(self) -> Iterator[int]:
        return (stage.stage_id for stage in self._spec.stages if not stage.input_sources)

    def _directed(self, stage: int) -> bool:
        return LoadBalancingPolicy(self._spec.stage(stage).lb_policy).directed

    def _lanes(self, stage: int) -> tuple[str, ...]:
        own = tuple(f"r{number}" for number in range(MOST_DIRECTED)) if self._directed(stage) else ()
        return (*self._spec.stage_lanes, *own)

    def _direct_targets(self, stage: int) -> tuple[int, ...]:
        edges = (edge for edge in self._spec.edges if edge.source == stage)
        return tuple(edge.target for edge in edges if edge.forwarding is Forwarding.DIRECT)


def _get(bucket: str, keys: str) -> str:
    return f"{_API}.DIRECT.GET.KV_{bucket}.$KV.{bucket}.{keys}"


def _watch(bucket: str, keys: str) -> str:
    """A consumer that pushes a bucket's changes: of these keys, of no other stream."""
    return f"{_API}.CONSUMER.CREATE.KV_{bucket}.*.$KV.{bucket}.{keys}"


def missing(wanted: Permissions, granted: Mapping[str, object] | None) -> list[str]:
    """The permissions that a user lacks, in words; `granted` is what the server says of it (None: everything). Pure."""
    if not granted:
        return []
    lacking = []
    for verb, subjects_wanted in (("publish", wanted.publish), ("subscribe", wanted.subscribe)):
        rules = granted.get(verb)
        allow, deny = (_list(rules, "allow"), _list(rules, "deny")) if isinstance(rules, Mapping) else (None, [])
        for subject in subjects_wanted:
            allowed = allow is None or any(covers(pattern, subject) for pattern in allow)
            if not allowed or any(covers(pattern, subject) for pattern in deny or ()):
                lacking.append(f"{verb} {subject}")
    return lacking


def covers(pattern: str, subject: str) -> bool:
    """Whether every subject that `subject` stands for is one that `pattern` takes. Pure."""
    ours, theirs = pattern.split("."), subject.split(".")
    for index, part in enumerate(ours):
        if part == ">":
            return len(theirs) > index
        if index >= len(theirs) or theirs[index] == ">" or part not in ("*", theirs[index]):
            return False
    return len(ours) == len(theirs)


def _list(rules: Mapping[str, object], name: str) -> list[str] | None:
    found = rules.get(name)
    return [str(one) for one in found] if isinstance(found, list) else None
