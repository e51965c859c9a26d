"""A stage whose answers have more than a text: reasoning, calls of tools, probabilities, a second choice."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

from omnibus.wire.fields import call_field, of_choice
from omnibus.workers.engines.protocol import StageInput, TextDelta

REASONING = ["The user ", "asks for ", "the weather."]
ARGUMENTS = ['{"city": ', '"Paris"', "}"]
TOKENS = ["It ", "is ", "fine."]
OTHER = ["Look ", "outside."]
CALL_ID = "call_1"

go_on = threading.Event()
"""The first attempt at a prompt with `fail` waits for it in its middle, and fails."""
attempts: list[int] = []


def line(token: str) -> str:
    return json.dumps({"token": token, "logprob": -0.5, "bytes": list(token.encode()), "top_logprobs": []}) + "\n"


def answer(stage_input: StageInput) -> Iterator[TextDelta]:
    attempts.append(1)
    token = iter(range(100))
    for piece in REASONING:
        yield TextDelta(text="", token_ids=(next(token),), fields={"reasoning": piece})
    for piece in TOKENS:
        yield TextDelta(text=piece, token_ids=(next(token),), fields={"logprobs": line(piece)})
    if "fail" in stage_input.request.text() and len(attempts) == 1:
        assert go_on.wait(30.0)
        raise RuntimeError("the first attempt ends here")
    if "calls" in stage_input.request.text():
        head = {call_field(0, "id"): CALL_ID, call_field(0, "name"): "weather"}
        yield TextDelta(text="", token_ids=(next(token),), fields=head)
        for piece in ARGUMENTS:
            yield TextDelta(text="", token_ids=(next(token),), fields={call_field(0, "arguments"): piece})
    if "twice" in stage_input.request.text():
        for piece in OTHER:
            yield TextDelta(text="", fields={of_choice(1, "text"): piece})
        yield TextDelta(text="", fields={of_choice(1, "finish_reason"): "stop"})
