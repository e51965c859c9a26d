"""The broker: what nats-server answers to the product's own bytes, in one place and in one order."""

from __future__ import annotations

import base64
import random
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from omnibus.broker.layout import layout_of
from omnibus.pipeline.spec import PipelineSpec
from omnibus.wire import stores
from tests.simulation.graphs import HEARTBEAT
from tests.simulation.loop import EPOCH, Process, VirtualLoop
from tests.simulation.queues import Consumer
from tests.simulation.streams import IN_PROCESS, Refusal, Stored, Stream, matches

if TYPE_CHECKING:
    from tests.simulation.connection import SimSubscription
    from tests.simulation.pulling import SimPuller

_MARKER_SECONDS = 60.0
_STORED_WITHIN = 4.0
"""Seconds in which a cluster with a slow node stores a message."""
_NO_HEADERS: Mapping[str, str] = {}


@dataclass(slots=True)
class Wire:
    """A message on its way to a client."""

    subject: str
    data: bytes = b""
    headers: Mapping[str, str] | None = None
    reply: str = ""


class Broker:
    """One nats-server with the streams, buckets and consumers of one pipeline."""

    def __init__(
        self, loop: VirtualLoop, rng: random.Random, spec: PipelineSpec, trace: Callable[[str, str], None]
    ) -> None:
        self.loop, self.rng, self.trace = loop, rng, trace
        layout, pipeline = layout_of(spec), spec.name
        self.streams = {
            made.name: Stream(made.name, one_a_subject=made.name.startswith("KV_")) for made in layout.streams
        }
        pipelines = f"KV_{stores.PIPELINES_BUCKET}"
        self.streams[pipelines] = Stream(pipelines, one_a_subject=True)
        self.work = self.streams[stores.work_stream(pipeline)]
        self.requests = self.streams[stores.requests_stream(pipeline)]
        self.ledger = self.streams[f"KV_{stores.requests_bucket(pipeline)}"]
        self.replicas = self.streams[f"KV_{stores.replicas_bucket(pipeline)}"]
        self.objects = self.streams[f"OBJ_{stores.payloads_bucket(pipeline)}"]
        self.chunks = self.streams.get(stores.chunks_stream(pipeline))
        self.consumers: dict[tuple[str, str], Consumer] = {}
        self.pullers: defaultdict[tuple[str, str], list[SimPuller]] = defaultdict(list)
        """Who asks for the messages of a consumer, whether it is there or not."""
        self.subscriptions: list[SimSubscription] = []
        self.inboxes: dict[str, Callable[[Wire], object]] = {}
        """Clients that wait for answers of others."""
        self.on_stored: Callable[[Stream, Stored], None] = lambda _stream, _stored: None
        for stream in (self.work, self.requests):
            stream.on_removed = lambda seq, name=stream.name: self._removed(name, seq)
        for made in layout.consumers:
            self._make(made.stream, made.config)

    def at(self, when: float, work: Callable[[], object]) -> None:
        """Do something at a virtual time, as nobody's process."""
        self.loop.call_at(when, work, context=self.loop.outside)

    def restart(self, is_back: Callable[[], bool]) -> None:
        """Killed and started again: files keep what was acknowledged, removals excepted where `is_back` says so.

        Ids of what was consumed are forgotten, and so are the leases of some of what is in hand: it is delivered again.
        """
        flows = self.chunks.bring_back(is_back) if self.chunks is not None else ()
        for stored in (*self.objects.bring_back(is_back), *self.work.bring_back(is_back), *flows):
            self.trace("broker", f"has again: {stored.subject} #{stored.seq}")
            self._schedule(stored)
        self.forget_ids()
        for consumer in self.consumers.values():
            self.at(self.loop.time(), consumer.forget_leases)  # when the connections are broken

    def forget_ids(self) -> None:
        """Forget message ids, as a lone killed server does."""
        for stream in self.streams.values():
            stream.forget_ids()

    # What clients send

    def handle(self, subject: str, data: bytes, headers: Mapping[str, str] | None) -> Wire:
        """The answer to a request."""
        try:
            if subject.startswith("$JS.API.DIRECT.GET."):
                return self._direct_get(subject.removeprefix("$JS.API.DIRECT.GET."), data)
            if subject.startswith("$JS.API."):
                return _json(self._api(subject.removeprefix("$JS.API."), msgspec.json.decode(data) if data else {}))
            if subject.startswith("$JS.ACK."):
                self.acknowledge(subject, data)
                return Wire("")
            return self._store(subject, data, headers or _NO_HEADERS)
        except Refusal as refused:
            error = {"code": refused.code, "err_code": refused.err_code, "description": refused.description}
            return _json({"error": error})

    def acknowledge(self, subject: str, word: bytes) -> None:
        tokens = subject.split(".")
        consumer = self.consumers.get((tokens[2], tokens[3]))
        if consumer is not None:
            consumer.answer(int(tokens[5]), word)

    def core(self, message: Wire) -> None:
        """Pass a message to its subscribers."""
        inbox = self.inboxes.get(message.subject)
        if inbox is not None:
            inbox(message)
            return
        for subscription in self.subscriptions:
            if matches(subscription.subject, message.subject):
                subscription.on_message(message)
                if subscription.is_one_of_many:
                    return

    def drop(self, process: Process) -> None:
        """Forget what a process that has ended is subscribed to."""
        self.subscriptions = [one for one in self.subscriptions if one._connection.process is not process]

    def is_heard(self, subject: str) -> bool:
        return any(matches(subscription.subject, subject) for subscription in self.subscriptions)

    def stream_of(self, subject: str) -> Stream | None:
        """The stream that keeps a subject."""
        tokens = subject.split(".")
        match tokens[0]:
            case "$KV":
                return self.streams.get(f"KV_{tokens[1]}")
            case "$O":
                return self.streams.get(f"OBJ_{tokens[1]}")
            case "omni" if tokens[2] in ("task", "event", "timer"):
                return self.work
            case "omni" if tokens[2] == "request":
                return self.requests
            case "omni" if tokens[2] == "chunk":
                return self.chunks
        return None

    # Storing

    def _store(self, subject: str, data: bytes, headers: Mapping[str, str]) -> Wire:
        stream = self.stream_of(subject)
        if stream is None:
            return Wire("", headers={"Status": "503"})
        seq, duplicate = stream.publish(subject, data, headers, EPOCH + self.loop.time())
        if not duplicate:
            self._stored(stream, stream.messages[seq])
        elif (stored := stream.messages.get(seq)) is not None and self._is_in_process(stored):
            raise Refusal(409, IN_PROCESS, "duplicate message id is in process")
        return _json({"stream": stream.name, "seq": seq, "duplicate": duplicate})

    def _is_in_process(self, stored: Stored) -> bool:
        """Whether a cluster would say of a message that comes again that it still stores it."""
        return EPOCH + self.loop.time() - stored.at < _STORED_WITHIN and self.rng.random() < 0.3

    def _stored(self, stream: Stream, stored: Stored) -> None:
        self.on_stored(stream, stored)
        self._schedule(stored)
        headers = stored.headers
        if stream is self.replicas:  # the bucket's age limit
            self.at(self.loop.time() + HEARTBEAT, lambda: self._expire(stream, stored))
        if "Nats-TTL" in headers:
            self.at(self.loop.time() + int(headers["Nats-TTL"]), lambda: self._expire(stream, stored))
        for (name, _), consumer in self.consumers.items():
            if name == stream.name and consumer.wants(stored.subject):
                consumer.offer()

    def _schedule(self, stored: Stored) -> None:
        if "Nats-Schedule" in stored.headers:
            moment = datetime.fromisoformat(stored.headers["Nats-Schedule"].removeprefix("@at ")).timestamp() - EPOCH
            self.at(max(moment, self.loop.time()), lambda: self._fire(stored))

    def _fire(self, timer: Stored) -> None:
        if self.work.remove(timer.seq):
            self.trace("broker", f"timer fires: {timer.subject}")
            self._store(timer.headers["Nats-Schedule-Target"], timer.data, _NO_HEADERS)

    def _expire(self, stream: Stream, stored: Stored) -> None:
        if not stream.remove(stored.seq) or "Nats-Marker-Reason" in stored.headers:
            return
        marker = {"Nats-Marker-Reason": "MaxAge", "Nats-TTL": str(int(_MARKER_SECONDS))}
        self._store(stored.subject, b"", marker)

    def _removed(self, stream: str, seq: int) -> None:
        for (name, _), consumer in self.consumers.items():
            if name == stream:
                consumer.forget(seq)

    # The JetStream API

    def _api(self, operation: str, body: Mapping[str, Any]) -> dict[str, Any]:
        group, verb, rest = operation.split(".", 2)
        match group, verb:
            case "STREAM", "MSG":
                what, name = rest.split(".", 1)
                return self._get(name, body) if what == "GET" else self._delete(name, body)
            case "STREAM", "PURGE":
                return {"success": True, "purged": self._purge(rest, body)}
            case "STREAM", "INFO":
                return self._info(self.streams[rest], body)
            case "CONSUMER", _:
                return self._consumer_api(verb, rest, body)
        raise Refusal(400, 10025, f"no such operation in the model: {operation}")

    def _get(self, name: str, body: Mapping[str, Any]) -> dict[str, Any]:
        stream = self.streams[name]
        found = stream.messages.get(body["seq"]) if "seq" in body else stream.last(body["last_by_subj"])
        if found is None:
            raise Refusal(404, 10037, "no message found")
        head = "NATS/1.0\r\n" + "".join(f"{key}: {value}\r\n" for key, value in found.headers.items()) + "\r\n"
        message = {"subject": found.subject, "seq": found.seq, "data": base64.b64encode(found.data).decode()}
        if found.headers:
            message["hdrs"] = base64.b64encode(head.encode()).decode()
        return {"message": message}

    def _delete(self, name: str, body: Mapping[str, Any]) -> dict[str, Any]:
        if not self.streams[name].remove(body["seq"]):
            raise Refusal(400, 10057, "message not found")
        return {"success": True}

    def _purge(self, name: str, body: Mapping[str, Any]) -> int:
        return self.streams[name].purge(body["filter"], before=body.get("seq"))

    def _info(self, stream: Stream, body: Mapping[str, Any]) -> dict[str, Any]:
        state: dict[str, Any] = {"messages": len(stream.messages), "last_seq": stream.last_seq}
        if "subjects_filter" not in body:
            return {"state": state, "total": 0}
        counts: dict[str, int] = {}
        for found in stream.after(0, body["subjects_filter"]):
            counts[found.subject] = counts.get(found.subject, 0) + 1
        page = dict(list(counts.items())[body.get("offset", 0) :])
        return {"state": {**state, "subjects": page}, "total": len(counts)}

    def _consumer_api(self, verb: str, rest: str, body: Mapping[str, Any]) -> dict[str, Any]:
        if verb == "LIST":
            return {"consumers": [_described(one) for (name, _), one in self.consumers.items() if name == rest]}
        stream, name = rest.split(".")[:2]
        if verb == "CREATE":
            return _described(self._make(stream, body["config"]))
        if (stream, name) not in self.consumers:
            raise Refusal(404, 10014, "consumer not found")
        return _described(self.consumers[stream, name])

    def _direct_get(self, rest: str, data: bytes) -> Wire:
        name, _, subject = rest.partition(".")
        stream = self.streams[name]
        if subject:
            found = stream.last(subject)
        else:
            body = msgspec.json.decode(data)
            wanted = body.get("next_by_subj")
            if "last_by_subj" in body:
                found = stream.last(body["last_by_subj"])
                return direct(found) if found is not None else Wire("", headers={"Status": "404"})
            found = next(stream.after(body["seq"], wanted), None) if wanted else stream.messages.get(body["seq"])
        return direct(found) if found is not None else Wire("", headers={"Status": "404"})

    def batch(self, stream: str, data: bytes) -> list[Wire]:
        """The answers of a batch get."""
        body = msgspec.json.decode(data)
        if "multi_last" in body:
            found = [last for subject in body["multi_last"] if (last := self.streams[stream].last(subject)) is not None]
        else:
            found = list(self.streams[stream].after(body["seq"], body["next_by_subj"]))[: body["batch"]]
        if not found:
            return [Wire("", headers={"Status": "404"})]
        return [*(direct(one) for one in found), Wire("", headers={"Status": "204"})]

    def _make(self, stream: str, config: Mapping[str, Any]) -> Consumer:
        """A durable consumer; idempotent."""
        key = stream, config["durable_name"]
        if key not in self.consumers:
            made = self.consumers[key] = Consumer(self, self.streams[stream], config)
            self.at(
                self.loop.time() + self.rng.uniform(0.0, 1.0), made.offer
            )  # pulls that were refused are asked for again
        return self.consumers[key]


def direct(stored: Stored) -> Wire:
    """A stored message as a direct get answers it."""
    at = datetime.fromtimestamp(stored.at, UTC).isoformat()
    about = {"Nats-Sequence": str(stored.seq), "Nats-Subject": stored.subject, "Nats-Time-Stamp": at}
    return Wire("", stored.data, {**stored.headers, **about})


def _json(answer: Mapping[str, Any]) -> Wire:
    return Wire("", msgspec.json.encode(answer))


def _described(consumer: Consumer) -> dict[str, Any]:
    return {
        "name": consumer.name,
        "config": consumer.config,
        "num_pending": consumer.waiting(),
        "num_ack_pending": consumer.in_hand,
        "delivered": {"stream_seq": consumer.reached},
    }
