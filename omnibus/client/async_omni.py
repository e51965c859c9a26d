"""AsyncOmni: ask a pipeline from async code."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Self

from omnibus.client.omni_base import OmniBase, from_any_loop
from omnibus.client.output_queue import OutputQueue
from omnibus.client.output_stream import Following, OutputStream
from omnibus.client.request_arguments import NamedAdapter, Prompt, make_request
from omnibus.client.request_outputs import OmniRequestOutput
from omnibus.client.session import Aborted, Session
from omnibus.errors import EmptyPrompt, InputClosed, Overloaded
from omnibus.wire.request import Request


class AsyncOmni(OmniBase):
    """Gives the outputs of each request to who asked; arguments and errors are those of OmniBase.

    `close` when done, or use it in an `async with`. May be used from any event loop.
    """

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def generate(  # noqa: PLR0913 vLLM's signature, and ours
        self,
        prompt: Prompt | AsyncIterator[Prompt],
        request_id: str | None = None,
        sampling_params_list: Sequence[Any] | None = None,
        *,
        output_modalities: Sequence[str] | None = None,
        stream: bool = False,
        prompt_text: str | None = None,
        arrival_time: float | None = None,
        lora_request: str | NamedAdapter | None = None,
        trace_headers: Mapping[str, str] | None = None,
        priority: int = 0,
        deadline: float | None = None,
    ) -> OutputStream:
        """Each output of a request as soon as it is ready; the last one is `finished`.

        With `stream`, pieces come before the whole: of a text as `delta`, of a sound as `piece` where its stage makes it in
        pieces. `output_modalities` picks the outputs, None for all; `deadline` is in seconds; the rest is as for
        AsyncOmniEngine.add_request. A wait for an output may be given up, as `asyncio.wait_for` does; leaving early, by closing
        or dropping what this returns, aborts the request.

        A `prompt` that is an async generator is an open input: each prompt that it yields is a segment, sent when it comes, and
        its end is that of the input. Pieces come as with `stream`, and `segment_finished` behind the answer to each; what it
        raises aborts the request.

        Raises as add_request does, and what the request failed of. An aborted request raises nothing: its last output has
        `finish_reason` "abort" and, of a text, the part that had been received.
        """
        making = partial(
            make_request, self.spec, sampling_params_list=sampling_params_list, modalities=output_modalities,
            lora_request=lora_request, trace_headers=trace_headers, priority=priority, deadline=deadline,
        )  # fmt: skip
        rid = request_id if request_id is not None else uuid.uuid4().hex
        how = {"prompt_text": prompt_text, "arrival_time": arrival_time}
        if isinstance(prompt, AsyncIterator):
            first = partial(_first_of, prompt, making)
            return OutputStream(self._lifetime(rid, first, prompt, deltas=True, **how))
        request = making(prompt)

        async def whole() -> Request:
            return request

        return OutputStream(self._lifetime(rid, whole, None, deltas=stream, **how))

    async def _lifetime(
        self, rid: str, first: Callable[[], Awaitable[Request]], segments: AsyncIterator[Prompt] | None, **how: Any
    ) -> AsyncGenerator[Following, None]:
        """Submit a request, yield once while it is followed, and abort it unless its end was seen."""
        queue = self._new_queue()
        submitting = asyncio.create_task(self._submit(rid, first, queue, **how), name=f"submitting-{rid}")
        following, tasks = Following(queue, submitting), {submitting}
        if segments is not None:
            tasks.add(asyncio.create_task(self._feed(rid, segments, following), name=f"segments-{rid}"))
        try:
            yield following
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            if following.is_accepted and not following.is_over and self.is_alive():
                await self.abort(rid)  # also on its way in
            self._end_queue(queue)

    async def _submit(
        self, rid: str, first: Callable[[], Awaitable[Request]], queue: OutputQueue[OmniRequestOutput], **how: Any
    ) -> None:
        request = await first()
        await self.run_async(self.session.submit(rid, request, queue, **how))

    async def _feed(self, rid: str, segments: AsyncIterator[Prompt], following: Following) -> None:
        """Send the segments that follow, and the end; what fails of that aborts the request.

        The outputs show how a request ends that takes no more.
        """
        await asyncio.wait({following.submitting})
        if following.submitting.exception() is not None:  # which is raised where the outputs are taken
            return
        try:
            async for prompt in segments:
                await self._send_segment(rid, prompt)
            await self.run_async(self.session.add_streaming_update(rid, None, resumable=False))
        except InputClosed:
            return
        except Exception as error:  # noqa: BLE001 raised where the outputs are taken
            following.failures.append(error)
            await self.abort(rid)

    async def _send_segment(self, rid: str, prompt: Prompt) -> None:
        """Send a segment, for as long as it takes until there is room for it: the generator of the input waits for that."""
        while True:
            try:
                return await self.run_async(self.session.add_streaming_update(rid, prompt))
            except Overloaded as error:
                await asyncio.sleep(error.retry_after)

    async def abort(self, request_id: str | Iterable[str], timeout: float | None = None) -> list[Aborted]:
        """See Session.abort; does nothing after a shutdown."""
        return [] if self.stopped else await self.run_async(self.session.abort(request_id, timeout))

    # Control of all replicas: see client.controls.Controls

    collective_rpc = from_any_loop(Session.collective_rpc)
    pause_generation = from_any_loop(Session.pause_generation)
    resume_generation = from_any_loop(Session.resume_generation)
    is_paused = from_any_loop(Session.is_paused)
    sleep = from_any_loop(Session.sleep)
    wake_up = from_any_loop(Session.wake_up)
    is_sleeping = from_any_loop(Session.is_sleeping)
    start_profile = from_any_loop(Session.start_profile)
    stop_profile = from_any_loop(Session.stop_profile)
    reset_prefix_cache = from_any_loop(Session.reset_prefix_cache)

    async def close(self) -> None:
        """Shut down without blocking the event loop."""
        await asyncio.to_thread(self.shutdown)


async def _first_of(segments: AsyncIterator[Prompt], making: Callable[..., Request]) -> Request:
    """The request that the first segment of an open input is."""
    first = await anext(segments, None)
    if first is None:
        raise EmptyPrompt("the input has no segment", param="prompt")
    return making(first, resumable=True)
