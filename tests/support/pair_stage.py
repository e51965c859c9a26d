"""A stage that scores a pair of texts by the share of the query's words that the document has."""

from __future__ import annotations

from omnibus.errors import EngineRejected
from omnibus.workers.engines.protocol import Finished, StageInput, TokenUsage


def score(stage_input: StageInput) -> Finished:
    query, document = (str(turn.content).split() for turn in stage_input.request.messages or ())
    if "refuse" in document:
        raise EngineRejected("not this one", param="messages")
    shared = sum(word in document for word in query) / len(query)
    return Finished(outputs={"score": shared}, usage=TokenUsage(prompt_tokens=len(query) + len(document)))
