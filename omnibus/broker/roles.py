"""The roles of processes on the broker, and what each may publish and subscribe to: the one table of permissions. Pure.

Everything else is refused. `nats/production.conf`, `omnibus nats credentials` and `omnibus doctor` are made from it. In the
answers of JetStream's API the subject is the right: `$JS.API.CONSUMER.MSG.NEXT.<stream>.<consumer>` is to take messages from one
consumer, and a body can ask for nothing that its subject does not name. Where a body could (`DIRECT.GET` without a subject,
`STREAM.MSG.GET`, `STREAM.PURGE`), only roles that may see all of the stream have it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum

import msgspec

from omnibus.broker.nats_access import SYSTEM_ROLE
from omnibus.pipeline.policies import LoadBalancingPolicy
from omnibus.pipeline.route import STREAMED_MEDIA, Forwarding
from omnibus.pipeline.spec import PipelineSpec
from omnibus.wire import stores, subjects

MOST_DIRECTED = 32
"""Replicas of a directed stage that a worker's permissions name: consumers have no wildcards within a name."""


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


_ANSWERING = (NatsRole.OPERATOR, NatsRole.ORCHESTRATOR, NatsRole.FRONTDOOR, NatsRole.WORKER, NatsRole.PRODUCER)
"""Roles that may answer what they are asked, on the reply subject of the question."""

_TABLE = {
    NatsRole.OPERATOR: """
        +frontdoor +observer
        deploy pipelines and pause stages: $KV.{pipelines}.{P} $KV.{pipelines}.{P}.>
        order a restart or another call of a replica: omni.{P}.ctl.*.*
        make and change streams: $JS.API.STREAM.{CREATE|UPDATE}.{stream} $JS.API.STREAM.{CREATE|UPDATE}.KV_{pipelines}
        make and change the store of files: $JS.API.STREAM.{CREATE|UPDATE|INFO}.{KV|OBJ}_{files}
        make and change the stores of jobs: $JS.API.STREAM.{CREATE|UPDATE|INFO}.KV_{jobs}
        make and change the queues of jobs: $JS.API.STREAM.{CREATE|UPDATE|INFO}.{jobqueue}
        make and change the queues of jobs: $JS.API.CONSUMER.{CREATE|INFO}.{jobqueue}.*
        make and change the store and the queue of webhooks: $JS.API.STREAM.{CREATE|UPDATE|INFO}.{webhookstream}
        make and change the store and the queue of webhooks: $JS.API.CONSUMER.{CREATE|INFO}.{webhookqueue}.*
        register webhooks: $KV.{webhooks}.>
        remove streams: $JS.API.STREAM.DELETE.{stream}
        make consumers: $JS.API.CONSUMER.CREATE.{queue}.*""",
    NatsRole.ORCHESTRATOR: """
        +everybody +ledger +replicas +pipeline
        take raw requests: $JS.API.CONSUMER.{MSG.NEXT|INFO}.{requests}.requests $JS.ACK.{requests}.requests.>
        take events: $JS.API.CONSUMER.MSG.NEXT.{work}.events
        acknowledge events, and return the tasks of dead replicas: $JS.ACK.{work}.>
        forward and reroute tasks: omni.{P}.task.*.*.*
        report attempts: omni.{P}.event.*.attempt.*
        set deadlines: omni.{P}.timer.*.*
        send answers to callers: omni.{P}.out.*.*
        cancel requests: omni.{P}.ctl.all <omni.{P}.ctl.all
        learn which tasks replicas have in hand: omni.{P}.ask.all omni.{P}.ask.*.* <omni.{P}.claim.*.*
        find and remove what ended requests have left: <omni.{P}.serve.*
        mark replicas down: $KV.{replicas}.*.*
        notice a new revision of the pipeline: $JS.API.CONSUMER.CREATE.KV_{pipelines}.*.$KV.{pipelines}.{P}
        read and remove queued tasks: $JS.API.STREAM.{INFO|PURGE|MSG.GET|MSG.DELETE}.{work} $JS.API.DIRECT.GET.{work}
        find and remove the flows of ended requests: $JS.API.STREAM.{INFO|PURGE}.{chunks}
        see how long queues are, and make the lanes of replicas: $JS.API.CONSUMER.{INFO|CREATE}.{work}.*
        see how long queues are: $JS.API.CONSUMER.LIST.{work}""",
    NatsRole.FRONTDOOR: """
        +everybody +ledger +replicas +pipeline +queues
        send requests to stage {entry}: omni.{P}.task.{entry}.*.*
        set deadlines: omni.{P}.timer.*.*
        exchange deltas and answers: omni.{P}.out.*.* <omni.{P}.out.*.*
        cancel requests, and ask for their texts: omni.{P}.{ctl|ask}.all
        ask replicas for the tokens of prompts: omni.{P}.ask.*.*
        learn which replica has a request in hand: <omni.{P}.claim.*.*
        notice new pipelines and pauses: $JS.API.CONSUMER.CREATE.KV_{pipelines}.*.$KV.{pipelines}.{>|*}
        read and remove queued tasks: $JS.API.STREAM.{INFO|PURGE|MSG.GET}.{queue}
        read flows: $JS.API.STREAM.MSG.GET.{chunks} $JS.API.DIRECT.GET.{chunks} <omni.{P}.chunk.*.*.*
        send segments of open inputs: omni.{P}.chunk.*.*.{input}
        notice how far they are read: <omni.{P}.chunk.*.*.{input}.*
        remove the flows of ended requests: $JS.API.STREAM.PURGE.{chunks}
        keep the records of files and jobs: $KV.{kept}.> $JS.API.DIRECT.GET.KV_{kept}.$KV.{kept}.>
        keep the records of files and jobs: $JS.API.STREAM.{INFO|MSG.GET}.KV_{kept} $JS.API.DIRECT.GET.KV_{kept}
        run batches, and see to videos and responses: {jobs}.* $JS.API.CONSUMER.MSG.NEXT.{jobqueue}.* $JS.ACK.{jobqueue}.>
        keep files: $O.{files}.C.> $O.{files}.M.* $JS.API.STREAM.PURGE.OBJ_{files}
        read where webhooks go: $JS.API.DIRECT.GET.KV_{webhooks}.$KV.{webhooks}.> $JS.API.DIRECT.GET.KV_{webhooks}
        read where webhooks go: $JS.API.STREAM.{INFO|MSG.GET}.KV_{webhooks}
        send webhooks: {webhooks}.* $JS.API.CONSUMER.MSG.NEXT.{webhookqueue}.* $JS.ACK.{webhookqueue}.>
        follow logs that grow, such as of responses: <$O.{files}.C.*
        read files: $JS.API.DIRECT.GET.OBJ_{files} $JS.API.DIRECT.GET.OBJ_{files}.$O.{files}.M.*""",
    NatsRole.WORKER: """
        +everybody +pipeline +payloads
        take tasks of stage {stage} from the lane {lane}: $JS.API.CONSUMER.{MSG.NEXT|INFO}.{work}.stage-{stage}-{lane}
        answer tasks of stage {stage} from the lane {lane}: $JS.ACK.{work}.stage-{stage}-{lane}.>
        report results and attempts: omni.{P}.event.{stage}.{result|final|failed|attempt}.*
        forward and return tasks of stage {target}: omni.{P}.task.{target}.*.*
        send deltas and answers to callers: omni.{P}.out.*.*
        tell which tasks a replica has in hand: omni.{P}.claim.{stage}.*
        have what an ended request has left removed: omni.{P}.serve.orphans
        end requests whose last edge is direct: $KV.{ended}.*
        read large requests behind the first stages: $JS.API.DIRECT.GET.KV_{read}.$KV.{read}.*
        write the flows of stage {flowing}: omni.{P}.chunk.*.*.{flowing}
        notice how far they are read: <omni.{P}.chunk.*.*.{flowing}.*
        notice new chunks of stage {streamed}: <omni.{P}.chunk.*.*.{streamed}
        notice new segments of open inputs: <omni.{P}.chunk.*.*.{listened}
        tell how far it has read them: omni.{P}.chunk.*.*.{streamed}.{stage}
        tell how far it has read open inputs: omni.{P}.chunk.*.*.{listened}.{stage}
        read flows: $JS.API.STREAM.MSG.GET.{flows} $JS.API.DIRECT.GET.{flows}
        exchange payloads in memory of other hosts: omni.{P}.fetch.* <omni.{P}.fetch.*
        notice cancellations, calls and questions: <omni.{P}.{ctl|ask}.all <omni.{P}.{ctl|ask}.{stage}.*
        register replicas: $KV.{replicas}.{stage}.*
        read which replicas there are: $JS.API.DIRECT.GET.KV_{replicas}.$KV.{replicas}.{stage}.*
        read which replicas there are: $JS.API.STREAM.MSG.GET.KV_{replicas}
        notice pauses: $JS.API.CONSUMER.CREATE.KV_{pipelines}.*.$KV.{pipelines}.{P}.pause.{stage}
        be listed as a service of NATS: <$SRV.* <$SRV.*.omni-{P}-{stage} <$SRV.*.omni-{P}-{stage}.*
        choose replicas of directed stages: $JS.API.CONSUMER.CREATE.KV_{replicas}.*.$KV.{replicas}.{watched}""",
    NatsRole.SUPERVISOR: """
        +everybody +pipeline
        return tasks of stage {stage} from the lane {lane}: $JS.ACK.{work}.stage-{stage}-{lane}.>
        see how many tasks stage {stage} has on the lane {lane}: $JS.API.CONSUMER.INFO.{work}.stage-{stage}-{lane}
        read queued tasks of stage {stage}: $JS.API.DIRECT.GET.{work}.omni.{P}.task.{stage}.*.*
        report attempts: omni.{P}.event.{stage}.attempt.*
        ask replicas what they have in hand: omni.{P}.ask.{stage}.* omni.{P}.ask.all <omni.{P}.claim.*.*
        mark replicas down: $KV.{replicas}.{stage}.*
        read which replicas there are: $JS.API.DIRECT.GET.KV_{replicas}.$KV.{replicas}.{stage}.*
        follow which replicas are up: $JS.API.CONSUMER.CREATE.KV_{replicas}.*.$KV.{replicas}.>""",
    NatsRole.PRODUCER: """
        +everybody
        send raw requests: omni.{P}.request.*
        receive deltas and answers: <omni.{P}.out.{token}.*
        ask for texts: omni.{P}.ask.all
        read the records of requests: $JS.API.DIRECT.GET.KV_{ledger}.$KV.{ledger}.*
        read payloads: $JS.API.DIRECT.GET.OBJ_{store} $JS.API.DIRECT.GET.OBJ_{store}.$O.{store}.M.*""",
    NatsRole.OBSERVER: """
        +everybody +replicas +pipeline +queues
        notice new pipelines and pauses: $JS.API.CONSUMER.CREATE.KV_{pipelines}.*.$KV.{pipelines}.{>|*}
        see streams and what they hold: $JS.API.STREAM.INFO.{stream}
        list replicas as services of NATS: $SRV.{PING|INFO|STATS} $SRV.{PING|INFO|STATS}.>""",
    NatsRole.DISCONNECTS: """
        hear at once that the connection of a replica is gone: <$SYS.ACCOUNT.OMNI.DISCONNECT
        receive answers: <{inbox}.>""",
    "everybody": """
        ask for the server's time and for its own permissions: $SYS.REQ.USER.INFO
        receive answers: <{inbox}.>""",
    "ledger": """
        read and write the records of requests: $KV.{ledger}.> $JS.API.DIRECT.GET.KV_{ledger}.$KV.{ledger}.>
        read the records of requests: $JS.API.STREAM.{INFO|MSG.GET}.KV_{ledger} $JS.API.DIRECT.GET.KV_{ledger}
        store payloads: $O.{stores}.C.> $O.{stores}.M.*
        read payloads: $JS.API.DIRECT.GET.OBJ_{stores} $JS.API.DIRECT.GET.OBJ_{stores}.$O.{stores}.M.*
        find and remove payloads: $JS.API.STREAM.{INFO|PURGE}.OBJ_{stores}""",
    "payloads": """
        store payloads: $O.{store}.C.> $O.{store}.M.*
        read payloads: $JS.API.DIRECT.GET.OBJ_{store} $JS.API.DIRECT.GET.OBJ_{store}.$O.{store}.M.*""",
    "replicas": """
        read which replicas there are: $JS.API.DIRECT.GET.KV_{replicas}.$KV.{replicas}.>
        read which replicas there are: $JS.API.STREAM.{INFO|MSG.GET}.KV_{replicas}
        follow which replicas are up: $JS.API.CONSUMER.CREATE.KV_{replicas}.*.$KV.{replicas}.{>|*}""",
    "pipeline": """
        read deployed pipelines and pauses: $JS.API.DIRECT.GET.KV_{pipelines}.$KV.{pipelines}.>
        read deployed pipelines and pauses: $JS.API.STREAM.{INFO|MSG.GET}.KV_{pipelines}""",
    "queues": """
        see how long queues are: $JS.API.CONSUMER.INFO.{queue}.* $JS.API.CONSUMER.LIST.{queue}""",
}  # fmt: skip
"""By role, or by the name of a part that several have: the purpose of rights, and their subjects; `<` is to subscribe.

Braces are one of several, or a name of the pipeline's. All deployed pipelines may be read: a command need not name one.
"""
_BRACES = re.compile(r"\{([^}]+)\}")


class Permissions(msgspec.Struct, frozen=True):
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
    found = sorted(rights(role, spec, stages=stages, token=token, inbox=inbox))
    publish, subscribe = (
        tuple(right.removeprefix(verb) for right in found if right.startswith(verb))
        for verb in ("publish ", "subscribe ")
    )
    return Permissions(publish, subscribe, role in _ANSWERING)


def rights(
    role: NatsRole, spec: PipelineSpec, *, stages: Sequence[int] = (), token: str = "", inbox: str
) -> Mapping[str, str]:
    """The purposes of a user's permissions, by `publish SUBJECT` and `subscribe SUBJECT`; arguments as of `permissions`."""
    names = {**_names(spec), "token": [token], "inbox": [inbox]}
    found: dict[str, str] = {}
    for known in [{**names, **_names_of_stage(spec, stage)} for stage in stages] or [names]:
        for line in _lines(role):
            for filled in _filled(line, known):
                purpose, _, wanted = filled.partition(": ")
                for subject in wanted.split():
                    found[f"subscribe {subject[1:]}" if subject[0] == "<" else f"publish {subject}"] = purpose
    return found


def _lines(name: str) -> Iterator[str]:
    for line in _TABLE[name].strip().splitlines():
        if line.strip().startswith("+"):
            for part in line.split():
                yield from _lines(part[1:])
        else:
            yield line.strip()


def _filled(line: str, names: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """A line with one after the other of what its braces stand for; the same braces stand for the same."""
    braces = _BRACES.search(line)
    if braces is None:
        yield line
        return
    for value in names[braces[1]] if braces[1] in names else braces[1].split("|"):
        yield from _filled(line.replace(braces[0], value), names)


def _names(spec: PipelineSpec) -> dict[str, list[str]]:
    work, requests = stores.work_stream(spec.name), stores.requests_stream(spec.name)
    replicas, ledger = stores.replicas_bucket(spec.name), stores.requests_bucket(spec.name)
    chunks = [stores.chunks_stream(spec.name)] if spec.has_flows else []
    jobs = [stores.BATCHES_BUCKET, stores.VIDEOS_BUCKET, stores.RESPONSES_BUCKET]
    bulk = [stores.payloads_bucket(spec.name), stores.dead_payloads_bucket(spec.name)]
    return {
        "P": [spec.name], "pipelines": [stores.PIPELINES_BUCKET], "files": [stores.FILES_BUCKET],
        "jobs": jobs, "kept": [stores.FILES_BUCKET, *jobs],
        "jobqueue": [stores.BATCHES_STREAM, stores.VIDEOS_STREAM, stores.RESPONSES_STREAM],
        "webhooks": [stores.WEBHOOKS_BUCKET], "webhookqueue": [stores.WEBHOOKS_STREAM],
        "webhookstream": [f"KV_{stores.WEBHOOKS_BUCKET}", stores.WEBHOOKS_STREAM],
        "replicas": [replicas], "ledger": [ledger],
        "work": [work], "requests": [requests], "queue": [work, requests], "store": bulk[:1], "stores": bulk,
        "stream": [work, requests, *chunks, f"KV_{replicas}", f"KV_{ledger}", *(f"OBJ_{store}" for store in bulk)],
        "entry": [str(stage.stage_id) for stage in spec.stages if not stage.input_sources],
        "chunks": chunks, "input": [] if spec.input_timeout is None else [subjects.INPUT],
        "listened": [], "flowing": [], "streamed": [], "flows": [],
        "stage": [], "lane": [], "target": [], "watched": [], "ended": [], "read": [],
    }  # fmt: skip


def _names_of_stage(spec: PipelineSpec, stage: int) -> dict[str, list[str]]:
    direct = [
        edge.target
        for edge in spec.edges
        if edge.source == stage and (edge.forwarding is Forwarding.DIRECT or edge.is_stream)
    ]
    streamed = [str(edge.source) for edge in spec.edges if edge.target == stage and edge.is_stream]
    flowing = [str(stage)] if _flows(spec, stage) else []
    listened = [subjects.INPUT] if spec.input_timeout is not None and not spec.stage(stage).input_sources else []
    ledger = [stores.requests_bucket(spec.name)]
    own = [f"r{number}" for number in range(MOST_DIRECTED)] if _directed(spec, stage) else []
    return {
        "stage": [str(stage)],
        "lane": [*spec.stage_lanes, *own],
        "flowing": flowing,
        "streamed": streamed,
        "listened": listened,
        "flows": [stores.chunks_stream(spec.name)] if flowing or streamed or listened else [],
        "ended": ledger if _ends(spec, stage) else [],
        "read": ledger if spec.stage(stage).input_sources else [],
        "target": [str(target) for target in (stage, *direct)],  # its own: what it returns
        "watched": [">"] if any(_directed(spec, target) for target in direct) else [],
    }


def _flows(spec: PipelineSpec, stage: int) -> bool:
    """Whether a stage can have a flow: for a stage that reads it, or a caller."""
    streams = any(edge.source == stage and edge.is_stream for edge in spec.edges)
    return streams or not STREAMED_MEDIA.isdisjoint(spec.stage(stage).final_types)


def _ends(spec: PipelineSpec, stage: int) -> bool:
    """Whether a worker of this stage ends requests: a direct edge leads to it, and none of its requests goes on from there."""
    edges = [edge for edge in spec.edges if edge.target == stage]
    return spec.stage(stage).final_output and any(edge.forwarding is Forwarding.DIRECT for edge in edges)


def _directed(spec: PipelineSpec, stage: int) -> bool:
    return LoadBalancingPolicy(spec.stage(stage).lb_policy).directed


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
