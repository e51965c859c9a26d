"""Tokens of a prompt, asked of a replica of the stage that would read it: nothing is queued, and nothing is run."""

from __future__ import annotations

import random
from collections.abc import Sequence

from omnibus.broker.connection import Connection
from omnibus.errors import BrokerUnavailable, EngineError, ReplicaMissing, RequestTooLarge
from omnibus.pipeline.spec import PipelineSpec
from omnibus.registry.presence.replica_record import ReplicaRecord
from omnibus.requests.request_checks import check_size
from omnibus.wire import codec, subjects
from omnibus.wire.control import AskTokens, PromptTokens, RpcReply

TIMEOUT = 10.0
"""Seconds that a replica has."""
MOST_ASKED = 3
"""Replicas that are asked, one after the other, while none answers."""


async def prompt_tokens(
    connection: Connection, spec: PipelineSpec, replicas: Sequence[ReplicaRecord], question: AskTokens
) -> PromptTokens:
    """The answer of one of the replicas, chosen at random.

    Raises what the replica raises, RequestTooLarge for a prompt that the pipeline or a message does not hold, ReplicaMissing
    where none answers.
    """
    check_size(spec, question.request)
    data = codec.encode(question)
    if len(data) > connection.max_payload:
        param = "prompt" if question.request.messages is None else "messages"
        raise RequestTooLarge(f"the prompt and its files have {len(data)} bytes", param=param)
    for record in random.sample(replicas, min(len(replicas), MOST_ASKED)):
        try:
            message = await connection.request(subjects.ask(spec.name, *record.key), data, timeout=TIMEOUT)
        except BrokerUnavailable:
            continue
        reply: RpcReply = codec.decode(message.data, RpcReply)
        if reply.value is not None:
            return codec.decode(reply.value, PromptTokens)
        raise reply.failure.exception() if reply.failure is not None else EngineError(str(reply.error))
    raise ReplicaMissing(f"no replica of model {spec.name!r} that reads prompts has answered")
