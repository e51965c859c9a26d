"""Any Python callable as an engine: plain or async, a function or a generator, or a class that makes one."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from functools import partial
from typing import Any

from omnibus.errors import (
    CheckpointMissing,
    ConfigError,
    EngineDead,
    EngineError,
    EngineRejected,
    InvalidRequest,
    PipelineError,
)
from omnibus.pipeline.spec import StageSpec
from omnibus.wire.fields import call_of
from omnibus.workers.engines.chunk_joining import joined
from omnibus.workers.engines.loaded_engine import LoadedEngine
from omnibus.workers.engines.protocol import (
    MOST_MEMBERS,
    Chunk,
    Finished,
    Item,
    Job,
    Outputs,
    Progress,
    SegmentEnd,
    TextDelta,
)
from omnibus.workers.engines.threads import EngineLoop, awaited, is_async
from omnibus.workers.object_loading import load_object
from omnibus.workers.output_files import to_json

_END = object()


class PythonEngine(LoadedEngine[Callable[..., Any]]):
    """Calls `model`, a `module:name`, with the stage's input.

    - A function takes a StageInput, and the sampling parameters too when it has a second parameter. A class is
      instantiated once with `engine_args` (without `outputs`) and its instances are called; its `close` is called at the end.
      One that depends on something which may die, such as a process of its own, has an async `wait_dead` that returns the
      reason then: the replica gives its tasks to others and is started again.
    - Plain functions and generators run in threads, async ones together on an event loop in a thread of its own: one that
      blocks it holds up the others, and the replica is started again after the stage's `stall_timeout`.
    - What is returned, or yielded last, are the outputs: a mapping with exactly the declared names, or the value of the
      only declared one. A generator also yields str or TextDelta, delivered as they come, and joined they are the value
      when nothing else is yielded; Chunk, for stages that read this one while it runs, which joined are the outputs then;
      Progress; and SegmentEnd behind the text that answers a segment of an open input.
    - Outputs are declared in `engine_args` as `outputs: {name: kind}`, else as the callable's attribute `outputs`, else
      as the stage's final output type, else as one output named `value`.

    Raise RequestError (such as InvalidRequest) for what the request got wrong; anything else counts as a failed attempt.
    A plain function cannot be interrupted: after an abort its thread, and the slot, are busy until it returns.
    """

    def __init__(self, stage: StageSpec) -> None:
        members = MOST_MEMBERS if stage.prompt_expand else 1
        super().__init__(stage, stage.slots * members + 1)  # one a member of each slot, and one for control calls
        self._arguments = {name: value for name, value in stage.engine_args.items() if name != "outputs"}
        self._target = self._found()
        self.outputs: Mapping[str, str] = self._declared()
        self._call: Callable[..., Any] = self._target
        self._takes_sampling = self._is_async = False
        self._loop = EngineLoop(f"python-{stage.name}-loop")

    async def start(self) -> None:
        if inspect.isclass(self._target):
            self._call = await self._threads.run(lambda: self._target(**self._arguments))
        self._takes_sampling, self._is_async = _takes(self._call, 2), is_async(self._call)

    async def generate(self, job: Job) -> AsyncIterator[Item]:
        self._check_sampling(job)
        pieces = _Pieces(self.outputs)
        with self._running(job.rid) as aborted:
            async with aclosing(self._values(job)) as values:
                async for value in values:
                    if aborted.is_set():
                        break
                    item = pieces.take(value)
                    if item is not None:
                        yield item
            yield pieces.finished("abort" if aborted.is_set() else "stop")

    async def wait_dead(self) -> Exception:
        watch = getattr(self._call, "wait_dead", None)
        if watch is not None:
            self._die(EngineDead(self._named(await self._loop.run(_called_here(watch), outlast=False))))
        return await super().wait_dead()

    async def rpc(self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call a method that the class lists in its attribute `rpc_methods`."""
        if method not in getattr(self._call, "rpc_methods", ()):
            raise InvalidRequest(f"{self._stage.model} has no control method {method!r}", param="method")
        return await self._called(getattr(self._call, method), *args, **kwargs)

    async def close(self) -> None:
        close = getattr(self._call, "close", None)
        try:
            if self._call is not self._target and callable(close):
                await self._called(close)
        finally:
            await super().close()
            self._loop.close()

    def _check_sampling(self, job: Job) -> None:
        """Refuse parameters that the callable does not take; one that draws no random numbers has nothing to seed."""
        if self._takes_sampling:
            return
        known = {**self._stage.default_sampling_params, "seed": job.sampling.get("seed")}
        unread = next((name for name, value in job.sampling.items() if known.get(name) != value), None)
        if unread is not None:
            message = f"{unread} has no effect: {self._stage.model} takes no sampling parameters"
            raise EngineRejected(message, param=unread)

    async def _called(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The value of a method: of an async one on the loop, of a plain one in a thread."""
        if inspect.iscoroutinefunction(call):
            return await self._loop.run(call(*args, **kwargs))
        return await self._threads.run(partial(call, *args, **kwargs))

    async def _values(self, job: Job) -> AsyncGenerator[object, None]:
        arguments = (job.stage_input, job.sampling) if self._takes_sampling else (job.stage_input,)
        made = self._call(*arguments) if self._is_async else await self._threads.run(self._call, *arguments)
        if inspect.isasyncgen(made):
            async with aclosing(self._loop.values(made)) as values:
                async for value in values:
                    yield value
        elif inspect.isgenerator(made):
            try:
                while (value := await self._threads.run(next, made, _END)) is not _END:
                    yield value
            finally:
                await self._threads.run(made.close)
        else:
            yield await self._loop.run(awaited(made)) if inspect.isawaitable(made) else made

    def _found(self) -> Any:
        try:
            target = load_object(self._stage.model, "model")
        except ConfigError as error:
            raise CheckpointMissing(f"stage {self._stage.name!r}: {error.message}", param="model") from error
        if not callable(target):
            raise CheckpointMissing(f"stage {self._stage.name!r}: {self._stage.model} cannot be called", param="model")
        self._check_arguments(target)
        self._check_call(target)
        return target

    def _check_arguments(self, target: Callable[..., Any]) -> None:
        if not inspect.isclass(target):
            if self._arguments:
                raise ConfigError(f"{self._stage.model} is a function: it takes no engine_args", param="engine_args")
            return
        with suppress(ValueError):  # of a class without a signature
            try:
                inspect.signature(target).bind(**self._arguments)
            except TypeError as error:
                raise PipelineError(f"{self._stage.model}: {error}", field="engine_args") from error

    def _check_call(self, target: Callable[..., Any]) -> None:
        """Refuse what could not be called with a stage's input; a class by its `__call__`."""
        call: Any = target
        if inspect.isclass(target):
            call = next((vars(one)["__call__"] for one in target.__mro__ if "__call__" in vars(one)), None)
        given = 1 + (inspect.isclass(target) and not isinstance(call, staticmethod))  # `self`
        if call is None or not any(_takes(call, count, unknown=True) for count in (given, given + 1)):
            raise PipelineError(
                f"{self._stage.model} is to be called with the stage's input alone, or with it and the sampling parameters; "
                f"it {'has no __call__' if call is None else f'takes {inspect.signature(call)}'}",
                field="model",
            )

    def _declared(self) -> Mapping[str, str]:
        declared = self._stage.engine_args.get("outputs") or getattr(self._target, "outputs", None)
        if declared:
            return dict(declared)
        return {modality: modality for modality in self._stage.final_types} or {"value": "json"}


class _Pieces:
    """Collects what a callable gives, until it is done."""

    def __init__(self, declared: Mapping[str, str]) -> None:
        self._declared = declared
        self._texts: list[str] = []
        self._fields: dict[str, str] = {}
        self._segments: list[int] = []
        self._chunks: list[Chunk] = []
        self._value: object = _END

    def take(self, value: object) -> Item | None:
        """The item to pass on at once, None when the value is for the end."""
        if isinstance(value, Progress):
            return value
        if isinstance(value, str) and self._writes_text:
            value = TextDelta(text=value)
        if isinstance(value, TextDelta):
            self._texts.append(value.text)
            for name, piece in value.fields.items():
                self._fields[name] = self._fields.get(name, "") + piece
            return value
        if isinstance(value, SegmentEnd):
            self._segments.append(sum(map(len, self._texts)))
            return value
        if isinstance(value, Chunk):
            self._chunks.append(value)
            return value
        self._value = value
        return None

    def finished(self, reason: str) -> Finished:
        if isinstance(self._value, Finished):
            return self._value
        if reason == "abort" and self._value is _END:
            return Finished(outputs={}, finish_reason=reason)
        segments = tuple(self._segments) if self._value is _END else ()  # else it is another text
        outputs = self._outputs()
        if reason == "stop" and any(call_of(name) for name in self._fields):
            reason = "tool_calls"
        return Finished(outputs=outputs, finish_reason=reason, segments=segments, fields=self._fields)

    @property
    def _writes_text(self) -> bool:
        return "text" in self._declared.values()

    def _outputs(self) -> Outputs:
        if self._value is _END:
            if self._chunks:
                return self._joined()
            if not self._texts:
                raise EngineError(f"nothing was returned; declared are {', '.join(self._declared)}")
            self._value = "".join(self._texts)
        given = self._value
        if not (isinstance(given, Mapping) and set(given) == set(self._declared)):
            if len(self._declared) != 1:
                raise EngineError(f"return a mapping with the declared outputs: {', '.join(self._declared)}")
            given = {next(iter(self._declared)): given}
        return {name: _as_text(value) if self._declared[name] == "text" else value for name, value in given.items()}

    def _joined(self) -> Outputs:
        """The outputs of the chunks, with the text that was yielded beside them."""
        text = next((name for name, kind in self._declared.items() if kind == "text"), "")
        try:
            return {**({text: "".join(self._texts)} if self._texts else {}), **joined(self._chunks, self._declared)}
        except (TypeError, ValueError) as error:
            raise EngineError(f"the chunks do not fit together: {error}") from error


def _as_text(value: Any) -> Any:
    """A text as it is, bytes as UTF-8 with U+FFFD for what is none, None as it is, anything else as JSON."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value if value is None or isinstance(value, str) else to_json(value).decode()


async def _called_here(call: Callable[[], Awaitable[Any]]) -> Any:
    """The value of an async call, all of which runs on the loop of this."""
    return await call()


def _takes(call: Callable[..., Any], count: int, *, unknown: bool = False) -> bool:
    """Whether so many arguments suffice; `unknown` of a callable without a signature."""
    try:
        inspect.signature(call).bind(*[None] * count)
    except ValueError:
        return unknown
    except TypeError:
        return False
    return True
