"""The engine protocol: the one interface between the replica loop and vLLM, diffusers, transformers, Python code or `sim`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from omnibus.errors import EngineRejected
from omnibus.pipeline.spec import StageSpec
from omnibus.wire.control import PromptTokens
from omnibus.wire.envelope import TokenUsage
from omnibus.wire.lazy_numpy import np
from omnibus.wire.request import Message, Request
from omnibus.wire.subjects import INPUT

Outputs = Mapping[str, Any]
"""Named values of one stage: str, bytes, numbers, lists and dicts of them, numpy arrays."""
MAIN = "main"
"""The role of the member of a bundle whose outputs are the stage's own; the others are its companions."""
SEGMENT_END = "segment_end"
"""The name by which the chunk of a flow that stands for a SegmentEnd is known."""
MOST_MEMBERS = 8
"""Members of one bundle, at most."""


class Flow(Protocol):
    """The outputs of a source that still runs, chunk by chunk and in order, to its end. It can be read once.

    `async for` reads it on any event loop, `for` in any thread but those of event loops; each item is a mapping of outputs.
    Where the source yields a SegmentEnd, a chunk has SEGMENT_END, and nothing in the source's text and tokens.
    A wait for a chunk may be given up, as `asyncio.wait_for` does: the next read gets it.
    Raises PayloadLost when the flow is damaged, naming the stage that makes it, and EngineError when it is no longer wanted.
    """

    def __aiter__(self) -> AsyncIterator[Outputs]: ...

    def __iter__(self) -> Iterator[Outputs]: ...


class Flows(dict[str, Flow]):
    """The flows that a stage reads, by its source's name. One that is not there is refused without another attempt."""

    def __missing__(self, name: str) -> Flow:
        if name == INPUT:
            raise EngineRejected("this stage reads an open input: send the request with `resumable`", param="resumable")
        raise EngineRejected(f"no flow comes from {name!r}: its edge is whole, and `sources` has its outputs")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageInput:
    """The input of a stage: the request, and the outputs of earlier stages."""

    rid: str
    request: Request
    sources: Mapping[str, Outputs] = field(default_factory=dict)
    """Outputs of the input stages, by stage name."""
    flows: Mapping[str, Flow] = field(default_factory=Flows)
    """Input stages that still run, by stage name: those over edges of mode `stream`. `input`: the open input of the request,
    segment by segment and the request's own first; each has its `text`, and its `token_ids` or `messages` where it has any."""
    companions: Mapping[str, Mapping[str, Outputs]] = field(default_factory=dict)
    """Outputs of the companions in the bundles of input stages, by stage name and then by role."""
    role: str = MAIN
    """The member of this stage's own bundle that this is the input of."""
    stages: Collection[str] = ()
    """Names and ids of the stages that run for this request; none of the input of a canary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInput:
    """The input of an engine, which an input processor makes of a StageInput.

    LLM engines take the first one given of messages, token_ids, embeds, text.
    """

    text: str | None = None
    messages: Sequence[Message] | None = None
    token_ids: Sequence[int] | None = None
    embeds: np.ndarray | None = None
    """Prompt embeddings, shape (T, H), float."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """Named inputs of other engines: pipeline call arguments of diffusers (`prompt_embeds` (T, H), …), codes of a codec."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One execution of a stage for one request."""

    rid: str
    stage_input: StageInput
    engine_input: EngineInput
    sampling: Mapping[str, Any]
    """The stage's defaults overridden by the request's."""
    attempt: int = 1
    """Delivery of the task that this execution belongs to; 1 is the first."""
    received: tuple[int, ...] = ()
    """Token ids that an earlier execution made and the client has. An engine that can go on after them does, and yields
    them first, with their text; one that cannot begins again, and of what it repeats the client sees nothing."""
    priority: int = 0
    trace: Mapping[str, str] = field(default_factory=dict)
    parts: AsyncIterator[EngineInput] | None = None
    """The engine's input part by part, of an input processor that is an async generator; `engine_input` is empty then."""
    companions: Mapping[str, Job] = field(default_factory=dict)
    """The other members of a bundle, by role. An engine runs one member at a time, and need not look at them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextDelta:
    """Tokens that an LLM has just made."""

    text: str
    token_ids: tuple[int, ...] = ()
    fields: Mapping[str, str] = field(default_factory=dict)
    """The next pieces of what the answer has beside its text, made before the text; names as in `wire.fields`. A delta ends
    with a whole line of a field that consists of lines."""
    prompt_tokens: int = 0
    """Tokens of the prompt; once, where the engine knows them."""
    is_opening: bool = False
    """Whether it begins an answer to a part of the input: stages that read this one have it sooner, with what waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A step of a longer computation; `preview` is an encoded image when there is one."""

    step: int
    total: int
    preview: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentEnd:
    """The text that answers a segment of an open input is whole: what comes next belongs to the next one.

    A caller who follows has it as SegmentFinished, a stage that reads this one as a flow as a chunk with SEGMENT_END.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A part of the outputs that is ready now, in order, for stages that read this one as a flow and callers that stream.

    `{"audio": samples, "sample_rate": 24000}`, `{"token_ids": [1, 2]}`: what follows each other makes the whole, which
    Finished has besides. Arrays follow each other along their first axis, sound along its last: (frames,) or (channels, frames).
    A TextDelta is a chunk by itself.
    """

    outputs: Outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The last item of a generation: every output of the stage, by declared name."""

    outputs: Outputs
    finish_reason: str = "stop"
    usage: TokenUsage = field(default_factory=TokenUsage)
    companions: Mapping[str, Outputs] = field(default_factory=dict)
    """Outputs of the other members of a bundle, by role; set by `workers.bundle`, not by engines."""
    segments: tuple[int, ...] = ()
    """Characters of the text before the end of each segment."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Parts of the answer beside its text, whole: for the caller, not for later stages."""


Item = TextDelta | Progress | Chunk | SegmentEnd | Finished


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """Load of an engine at this moment."""

    running: int = 0
    waiting: int = 0


class Engine(Protocol):
    """An engine that serves one replica. All methods are called on the replica's event loop; none blocks it."""

    outputs: Mapping[str, str]
    """Declared outputs: name → payload kind (`text`, `tokens`, `tensor`, `image`, `audio`, `json`)."""

    async def start(self) -> None:
        """Load the model. Raises CheckpointMissing or StageStartError."""

    def generate(self, job: Job) -> AsyncIterator[Item]:
        """Run one job; the last item is Finished. Concurrent up to the stage's slots; each may hold a bundle of MOST_MEMBERS.

        Raises EngineRejected for what the request got wrong, EngineError for what the engine did.
        Cancelling the consumer, or `abort`, frees the engine's resources as soon as that is possible. Closing the generator
        takes until nothing works on the job any more, neither a thread nor a request elsewhere: its slot is busy until then.
        """
        ...

    def progress(self) -> int:
        """A number that grows with every sign that the whole engine works, such as a step of its scheduler or of a batch.

        An execution that yields no item while this stays the same makes no progress; 0 where items alone show it.
        """
        ...

    async def abort(self, rid: str) -> None:
        """Stop the running jobs of a request; their generators end with finish_reason "abort", which is no result.

        Unknown ids are ignored.
        """

    def stats(self) -> EngineStats: ...

    def dead(self) -> Exception | None:
        """Why the engine cannot serve any more, None while it can. Checked after every job and at every heartbeat."""

    async def wait_dead(self) -> Exception:
        """Why the engine cannot serve any more, the moment that happens, whether it has jobs or not.

        One that runs in a process of its own watches that. An exception that it raises counts as the reason.
        """
        ...

    async def rpc(self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call a control method of the engine, such as `reset_prefix_cache`. Raises InvalidRequest for unknown ones."""

    async def close(self) -> None:
        """Free everything; idempotent."""


@runtime_checkable
class Tokenizing(Protocol):
    """An engine that says which tokens it makes of a prompt; others lack the method."""

    async def tokens(self, job: Job, *, special: bool | None, strings: bool) -> PromptTokens:
        """The tokens of a job's prompt, which is not run; arguments as of `AskTokens`. Raises EngineRejected."""
        ...


class EngineFactory(Protocol):
    def __call__(self, stage: StageSpec) -> Engine: ...
