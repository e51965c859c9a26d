"""The channels of the wire: each subject that messages travel on, with their types and who sends and receives them.

Subjects are made by `omnibus.wire.subjects` of stand-ins for names, which become the parameters of an address.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omnibus.batches.batch_record import BatchRecord
from omnibus.frontdoor.job_records import QueuedJob
from omnibus.payloads.fetching import Fetch
from omnibus.registry.presence.replica_record import ReplicaRecord
from omnibus.requests.record import DeadLetter, Record
from omnibus.webhooks.webhook_store import QueuedWebhook
from omnibus.wire import control, envelope, out, stores, subjects
from omnibus.wire.chunk import Chunks, ReadPosition
from omnibus.wire.request import Request

_P, _RID, _NONCE, _LANE, _REPLICA, _HOST = "-pipeline-", "-rid-", "-nonce-", "-lane-", "-replica-", "-host-"
_TOKEN, _KIND, _ACCOUNT, _ID = "-token-", "-kind-", "-account-", "-id-"
_STAGE, _READER, _RUN = 990001, 990002, 990003
_STAND_INS = {str(number): name for number, name in ((_STAGE, "stage"), (_READER, "reader"), (_RUN, "run"))} | {
    text: text.strip("-")
    for text in (_P, _RID, _NONCE, _LANE, _REPLICA, _HOST, _TOKEN, _KIND, _ACCOUNT, _ID)
}  # fmt: skip
PARAMETERS = {
    "pipeline": "name of the pipeline",
    "rid": "id of the request",
    "stage": "`stage_id` of a stage; of an event also `any`, of a flow also `input`",
    "reader": "`stage_id` of the stage that reads the flow",
    "lane": "`interactive`, `overflow`, `batch`, or the id of a replica of a directed stage",
    "kind": "`result`, `final`, `failed`, `attempt` or `deadline`",
    "nonce": "a mark of the admission that made the request's record",
    "run": "number of the run of a request, 0 for an open input",
    "token": "reply token: the header `Omni-Reply` of a raw request",
    "replica": "id of a replica in its stage",
    "host": "id of a host",
    "account": "account at the NATS server",
    "id": "id of a batch, a video or a response",
}
PLAIN = "text/plain"
MSGPACK = "application/msgpack"
JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Plain:
    """A message that is a text, or bytes that are none of our types."""

    name: str
    summary: str
    content_type: str = PLAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """One subject, or key, with all messages on it."""

    name: str
    address: str
    summary: str
    messages: tuple[Any, ...]
    """msgspec types, or `Plain`."""
    senders: tuple[str, ...]
    receivers: tuple[str, ...]
    kept: str = ""
    """The stream or bucket that keeps it; empty: core NATS, where a message may be lost."""
    headers: Mapping[str, str] = field(default_factory=dict)
    replies: tuple[Any, ...] = ()
    """Messages on the reply subject of each."""


def _address(subject: str) -> str:
    for text, name in _STAND_INS.items():
        subject = subject.replace(text, f"{{{name}}}")
    return subject


_WORK, _CHUNKS = _address(stores.work_stream(_P)), _address(stores.chunks_stream(_P))
_ORPHANS = "serve.orphans"

CHANNELS = (
    Channel(
        name="request", address=_address(subjects.request(_P, _RID)), kept=f"stream {_address(stores.requests_stream(_P))}",
        summary="A request of any producer, as MessagePack or JSON; the PubAck accepts it", messages=(Request,),
        senders=("producer",), receivers=("orchestrator",), headers={"Omni-Reply": "the token of the producer's own subject"},
    ),
    Channel(
        name="out", address=_address(subjects.out(_P, _TOKEN, _RID)), summary="Deltas, outputs and the end, to who asked",
        messages=(out.Tokens, out.Step, out.OutputReady, out.EndNotice, out.Refused, out.AskReceived),
        senders=("worker", "orchestrator", "frontdoor"), receivers=("producer", "frontdoor"), replies=(out.Received,),
    ),
    Channel(
        name="task", address=_address(subjects.task(_P, _STAGE, _LANE, _RID)), kept=f"stream {_WORK}",
        summary="Work for one stage", messages=(envelope.Task,),
        senders=("frontdoor", "orchestrator", "worker"), receivers=("worker",),
        headers={"Omni-Attempts": "attempts that former copies of the task have used up"},
    ),
    Channel(
        name="event", address=_address(subjects.event(_P, _STAGE, _KIND, _RID)), kept=f"stream {_WORK}",
        summary="What became of a task or of a deadline; a text in place of an event says why a task cannot be read",
        messages=(envelope.StageResult, envelope.StageFailed, envelope.AttemptFailed, envelope.DeadlinePassed,
                  Plain("UnreadableTask", "why a task cannot be read")),
        senders=("worker", "supervisor", "orchestrator"), receivers=("orchestrator",),
    ),
    Channel(
        name="timer", address=_address(subjects.timer(_P, _NONCE, _RID)), kept=f"stream {_WORK}",
        summary="A deadline, which the server publishes as an event when it has come", messages=(envelope.DeadlinePassed,),
        senders=("frontdoor", "orchestrator"), receivers=("nats-server",),
        headers={"Nats-Schedule": "the moment", "Nats-Schedule-Target": "the event's subject"},
    ),
    Channel(
        name="flow", address=_address(subjects.chunks(_P, _RID, _NONCE, _RUN, _STAGE)), kept=f"stream {_CHUNKS}",
        summary="What a stage makes while it runs, or segments of an open input: numbered chunks, and an end",
        messages=(Chunks,), senders=("worker", "frontdoor"), receivers=("worker", "frontdoor"),
        headers={"Nats-Expected-Last-Subject-Sequence": "the last message that the writer knows"},
    ),
    Channel(
        name="readPosition", kept=f"stream {_CHUNKS}",
        address=_address(subjects.read_position(subjects.chunks(_P, _RID, _NONCE, _RUN, _STAGE), _READER)),
        summary="How far a stage has read a flow", messages=(ReadPosition,), senders=("worker",),
        receivers=("worker", "frontdoor"),
    ),
    Channel(
        name="claim", address=_address(subjects.claim(_P, _STAGE, _REPLICA)), summary="The deliveries that a replica holds",
        messages=(control.Claim, control.ClaimChange), senders=("worker",), receivers=("orchestrator", "supervisor"),
    ),
    Channel(
        name="control", address=_address(subjects.ctl(_P, _STAGE, _REPLICA)), summary="A call of one replica",
        messages=(control.Rpc,), senders=("operator",), receivers=("worker",), replies=(control.RpcReply,),
    ),
    Channel(
        name="controlAll", address=_address(subjects.ctl_all(_P)), summary="Orders to all processes",
        messages=(control.Cancel, control.Free), senders=("orchestrator", "frontdoor"), receivers=("worker", "orchestrator"),
    ),
    Channel(
        name="ask", address=_address(subjects.ask(_P, _STAGE, _REPLICA)),
        summary="A question to one replica, which changes nothing",
        messages=(control.AskClaims, control.AskTokens), senders=("orchestrator", "frontdoor", "supervisor"),
        receivers=("worker",), replies=(control.RpcReply,),
    ),
    Channel(
        name="askAll", address=_address(subjects.ask_all(_P)), summary="A question to all replicas, which changes nothing",
        messages=(control.AskClaims, control.AskSentText), senders=("orchestrator", "frontdoor", "supervisor", "producer"),
        receivers=("worker",), replies=(out.Tokens,),
    ),
    Channel(
        name="fetch", address=_address(subjects.fetch(_P, _HOST)),
        summary="A payload in the memory of a host is wanted elsewhere",
        messages=(Fetch,), senders=("worker",), receivers=("worker",),
        replies=(Plain("StoredKey", "the key of the payload in the object store; empty when it is lost"),),
    ),
    Channel(
        name="orphans", address=_address(subjects.questions(_P, "orphans")),
        summary="A request has ended, and may have left something", senders=("worker",), receivers=("orchestrator",),
        messages=(Plain("EndedRequest", "its id, or timers as nonce.rid with spaces between"),),
        replies=(Plain("LatestRun", "the number of the request's last run"),),
    ),
    Channel(
        name="batch", address=_address(subjects.batch(_ID)), kept=f"stream {stores.BATCHES_STREAM}",
        summary="A batch that has not ended", messages=(BatchRecord,), senders=("frontdoor",), receivers=("frontdoor",),
    ),
    Channel(
        name="video", address=_address(subjects.queued_video(_ID)), kept=f"stream {stores.VIDEOS_STREAM}",
        summary="A video that has not ended", messages=(QueuedJob,), senders=("frontdoor",), receivers=("frontdoor",),
    ),
    Channel(
        name="response", address=_address(subjects.queued_response(_ID)), kept=f"stream {stores.RESPONSES_STREAM}",
        summary="A response in the background that has not ended", messages=(QueuedJob,),
        senders=("frontdoor",), receivers=("frontdoor",),
    ),
    Channel(
        name="log", address=_address(subjects.log(_ID)), kept=f"object store {stores.FILES_BUCKET}",
        summary="Lines that are appended to the log of a batch or a response", senders=("frontdoor",),
        receivers=("frontdoor",), messages=(Plain("LogLines", "lines of JSON, of which a message may have a part", JSON),),
        headers={"Nats-Expected-Last-Subject-Sequence": "the last message that the writer knows"},
    ),
    Channel(
        name="webhook", address=_address(subjects.queued_webhook(_ID)), kept=f"stream {stores.WEBHOOKS_STREAM}",
        summary="An event that an endpoint of webhooks has not taken", messages=(QueuedWebhook,), senders=("frontdoor",),
        receivers=("frontdoor",),
    ),
    Channel(
        name="disconnects", address=_address(subjects.disconnects(_ACCOUNT)),
        senders=("nats-server",), receivers=("orchestrator",), summary="A connection is gone, as nats-server tells it",
        messages=(Plain("Disconnect", "the server's own event", JSON),),
    ),
    Channel(
        name="record", address=f"$KV.{_address(stores.requests_bucket(_P))}.{{rid}}", kept="that bucket",
        summary="What is known of a request", messages=(Record,), senders=("frontdoor", "orchestrator", "worker"),
        receivers=("producer", "frontdoor", "orchestrator"),
    ),
    Channel(
        name="deadLetter", kept="that bucket",
        address=f"$KV.{_address(stores.requests_bucket(_P))}.{_address(stores.dead_letter_key(_RID))}",
        summary="A request whose attempts were used up", messages=(DeadLetter,),
        senders=("orchestrator",), receivers=("operator",),
    ),
    Channel(
        name="replica", kept="that bucket",
        address=f"$KV.{_address(stores.replicas_bucket(_P))}.{_address(stores.replica_key(_STAGE, _REPLICA))}",
        summary="A replica, at every heartbeat", messages=(ReplicaRecord,), senders=("worker", "supervisor", "orchestrator"),
        receivers=("orchestrator", "frontdoor", "worker", "operator"),
    ),
)  # fmt: skip
