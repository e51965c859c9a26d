"""An engine that computes nothing, with configured latency, token rate, failures and output kinds. For tests and benches."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import re
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from omnibus.child_process import ChildProcess, start_child
from omnibus.errors import ConfigError, EngineDead, EngineError, EngineRejected, InvalidRequest
from omnibus.pipeline.spec import StageSpec
from omnibus.wire.envelope import TokenUsage
from omnibus.wire.lazy_numpy import np
from omnibus.workers.engines.loaded_engine import LoadedEngine
from omnibus.workers.engines.protocol import Finished, Item, Job, Progress, StageInput, TextDelta

CRASH_EXIT_CODE = 70
_IDLE = ("sh", "-c", "read -r forever")
"""A process that does nothing, and ends with the holder of its input."""
_SHORT_PAUSE = 0.05
SAMPLE_RATE = 8000
MOST_SAMPLES = 1 << 26
"""Elements of a tensor, samples of a sound: 256 MiB."""
MOST = 100_000
"""Words, steps or elements that anybody may ask for."""
MOST_SIDE = 4096
"""Pixels of an image's side, at most."""


class On(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which executions something happens to: all that match both; with neither given, none."""

    rid: str = ""
    """Pattern searched for in the request's id."""
    attempts: tuple[int, ...] = ()
    """Deliveries of the task, from 1; empty: every one."""

    def hits(self, job: Job) -> bool:
        if not self.rid and not self.attempts:
            return False
        return re.search(self.rid, job.rid) is not None and (not self.attempts or job.attempt in self.attempts)


class SimArgs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`engine_args` of a `sim` stage; a request's sampling parameters override them by name. Durations are seconds."""

    latency: float | tuple[float, float] = 0.0
    """Time before the first item; a pair: uniform between the two."""
    tokens: Annotated[int, Meta(ge=0, le=MOST)] = 0
    """Words of the answer; 0: as many as the prompt has."""
    token_rate: float = 0.0
    """Words a second; 0: all at once."""
    steps: Annotated[int, Meta(ge=0, le=MOST)] = 0
    """Progress steps that the latency is divided into."""
    start_latency: float = 0.0
    """Time that loading takes."""
    fail_rate: float = 0.0
    """Share of executions that fail with a retryable EngineError."""
    fail_on: On = On()
    reject_on: On = On()
    """Refused as the request's fault."""
    crash_on: On = On()
    """The process exits at once, as under a kill -9."""
    hang_on: On = On()
    """Never finishes by itself."""
    stall_on: On = On()
    """Blocks a thread for ever, and takes no notice of an abort."""
    outputs: dict[str, str] = msgspec.field(default_factory=lambda: {"text": "text"})
    """Declared outputs, name → kind."""
    subprocess: bool = False
    """Has a process of its own, as large engines do, and is dead when that is."""
    size: Annotated[int, Meta(ge=0, le=MOST_SAMPLES)] = 16
    """Side of an image, elements of a tensor, samples of audio."""
    seed: int = 0


def expected_text(prompt: str, tokens: int = 0) -> str:
    """Make the answer of a `sim` stage to a prompt: its words, over and over until there are `tokens` of them."""
    words = prompt.split() or [""]
    count = tokens or len(words)
    return " ".join(words[index % len(words)] for index in range(count))


class SimEngine(LoadedEngine[None]):
    """See SimArgs. Its text depends on the prompt only, so that a test can tell what must come out."""

    def __init__(self, stage: StageSpec) -> None:
        super().__init__(stage, stage.slots)
        self._args = _parse(stage.engine_args, "engine_args")
        self._random = random.Random(self._args.seed)  # noqa: S311 repeatable, not secret
        self._released = threading.Event()
        self._child: ChildProcess | None = None
        self._watching: asyncio.Task[None] | None = None
        self.outputs: Mapping[str, str] = self._args.outputs

    async def start(self) -> None:
        await asyncio.sleep(self._args.start_latency)
        if self._args.subprocess:
            self._child = await start_child(*_IDLE, stdin=subprocess.PIPE)
            self._watching = asyncio.create_task(self._watch(self._child), name=f"sim-{self._child.pid}")

    async def generate(self, job: Job) -> AsyncIterator[Item]:
        args = _parse({**self._stage.engine_args, **job.sampling}, "sampling_params", EngineRejected)
        self._misbehave(args, job)
        with self._running(job.rid) as aborted:
            async for item in self._compute(args, job, aborted):
                yield item

    async def rpc(self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """`echo` returns its arguments; `die` makes the engine dead."""
        if method == "echo":
            return [list(args), dict(kwargs)]
        if method == "die":
            self._die(EngineDead("configured to die"))
            return None
        raise InvalidRequest(f"sim has no control method {method!r}; there are die, echo", param="method")

    async def close(self) -> None:
        self._released.set()
        await super().close()
        if self._watching is not None:
            self._watching.cancel()
        if self._child is not None and self._child.returncode is None:
            self._child.kill()
            await self._child.wait()

    async def _watch(self, child: ChildProcess) -> None:
        code = await child.wait()
        self._die(EngineDead(self._named(f"the engine's process ended with {code}")))

    def _misbehave(self, args: SimArgs, job: Job) -> None:
        if self._cause is not None:
            raise self._cause
        if args.reject_on.hits(job):
            raise EngineRejected("configured to reject this request")
        if args.crash_on.hits(job):
            os._exit(CRASH_EXIT_CODE)
        if args.fail_on.hits(job) or self._random.random() < args.fail_rate:
            raise EngineError("configured to fail")

    async def _compute(self, args: SimArgs, job: Job, aborted: asyncio.Event) -> AsyncIterator[Item]:
        made = job.engine_input.text if self._stage.input_processor is not None else None
        prompt = made if made is not None else await _prompt_read(job.stage_input)
        words = expected_text(prompt, args.tokens).split(" ")
        async for progress in self._wait(args, aborted):
            yield progress
        if args.hang_on.hits(job):
            await aborted.wait()
        if args.stall_on.hits(job):
            await self._threads.run(self._released.wait)
        sent_text, prompt_tokens = list[str](), len(prompt.split())
        if "text" in args.outputs.values():
            async for delta in _speak(words, args.token_rate, aborted, received=len(job.received)):
                yield delta if sent_text else replace(delta, prompt_tokens=prompt_tokens)
                sent_text.append(delta.text)
        text = "".join(sent_text)
        usage = TokenUsage(prompt_tokens=prompt_tokens, completion_tokens=len(text.split()))
        outputs = {name: _value(kind, text or " ".join(words), args) for name, kind in args.outputs.items()}
        yield Finished(outputs=outputs, finish_reason="abort" if aborted.is_set() else "stop", usage=usage)

    async def _wait(self, args: SimArgs, aborted: asyncio.Event) -> AsyncIterator[Progress]:
        latency = args.latency if isinstance(args.latency, float) else self._random.uniform(*args.latency)
        parts = max(args.steps, 1)
        for step in range(parts):
            if latency:
                await _pause(latency / parts, aborted)
            if args.steps and not aborted.is_set():
                yield Progress(step=step + 1, total=args.steps)


def prompt_of(stage_input: StageInput) -> str:
    """The text that an execution works on: of the first source that has one, else the request's."""
    for outputs in stage_input.sources.values():
        if isinstance(outputs.get("text"), str):
            return str(outputs["text"])
    prompt = stage_input.request.prompt
    return " ".join(map(str, prompt)) if isinstance(prompt, tuple) else stage_input.request.text()


async def _prompt_read(stage_input: StageInput) -> str:
    """The same; of a source that still runs, all that it says."""
    for flow in stage_input.flows.values():
        return "".join([str(chunk.get("text", "")) async for chunk in flow])
    return prompt_of(stage_input)


async def _speak(
    words: Sequence[str], rate: float, aborted: asyncio.Event, *, received: int
) -> AsyncIterator[TextDelta]:
    """The words that the client has already; then each when it is due, counted from the start, those of one moment together."""
    if received:
        yield _delta(words, 0, received)
    started, made = time.monotonic(), received
    while made < len(words):
        due = made + 1
        if rate:
            await _pause(started + (due - received) / rate - time.monotonic(), aborted)
            due = max(due, min(received + int((time.monotonic() - started) * rate), len(words)))
        if aborted.is_set():
            return
        yield _delta(words, made, due)
        made = due


def _delta(words: Sequence[str], first: int, end: int) -> TextDelta:
    text = " ".join(words[first:end])
    return TextDelta(text=f" {text}" if first else text, token_ids=tuple(range(first, end)))


async def _pause(seconds: float, aborted: asyncio.Event) -> None:
    if seconds < _SHORT_PAUSE:  # an abort is seen soon enough behind it
        await asyncio.sleep(max(seconds, 0.0))
        return
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await aborted.wait()


def _value(kind: str, text: str, args: SimArgs) -> object:
    digest = hashlib.sha256(text.encode()).digest()
    match kind:
        case "text":
            return text
        case "tokens":
            return list(range(len(text.split())))
        case "tensor":
            return np.full(args.size, digest[0], dtype=np.float32)
        case "image":
            side = min(args.size, MOST_SIDE)
            return np.full((side, side, 3), list(digest[:3]), dtype=np.uint8)
        case "audio":
            return {"samples": np.full(args.size, digest[0] / 512, dtype=np.float32), "sample_rate": SAMPLE_RATE}
        case _:
            return {"text": text}


def _parse(
    values: Mapping[str, Any], where: str, error_kind: type[ConfigError | EngineRejected] = ConfigError
) -> SimArgs:
    try:
        args = msgspec.convert(values, SimArgs)
        for on in (args.fail_on, args.reject_on, args.crash_on, args.hang_on, args.stall_on):
            re.compile(on.rid)
    except (msgspec.ValidationError, re.error) as error:
        raise error_kind(f"sim: {where}: {error}", param=where) from error
    return args
