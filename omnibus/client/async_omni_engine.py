"""AsyncOmniEngine: a pipeline behind plain methods."""

from __future__ import annotations

from collections.abc import Iterable

from omnibus.client.omni_base import OmniBase, blocking, from_any_loop
from omnibus.client.request_outputs import OmniRequestOutput
from omnibus.client.session import Aborted, Session


class AsyncOmniEngine(OmniBase):
    """Adds requests, whose outputs all come from `try_get_output`; arguments and errors are those of OmniBase.

    Every method may be called from any thread; those that end in `_async` from any event loop.
    """

    add_request = blocking(Session.add_request)
    add_request_async = from_any_loop(Session.add_request)
    add_streaming_update = blocking(Session.add_streaming_update)
    add_streaming_update_async = from_any_loop(Session.add_streaming_update)
    collective_rpc = blocking(Session.collective_rpc)
    collective_rpc_async = from_any_loop(Session.collective_rpc)

    def abort(self, request_ids: str | Iterable[str], timeout: float | None = None) -> list[Aborted]:
        """See Session.abort; does nothing after a shutdown."""
        return [] if self.stopped else self.run(self.session.abort(request_ids, timeout))

    async def abort_async(self, request_ids: str | Iterable[str], timeout: float | None = None) -> list[Aborted]:
        """See `abort`."""
        return [] if self.stopped else await self.run_async(self.session.abort(request_ids, timeout))

    def try_get_output(self, timeout: float | None = 0.001) -> OmniRequestOutput | None:
        """The next output of any request, None when there is none within `timeout` seconds; raises EngineDead at the end."""
        return self._outputs.take(timeout)

    async def try_get_output_async(self, timeout: float | None = 0.001) -> OmniRequestOutput | None:
        """See `try_get_output`; cancelling it loses no output."""
        return await self._outputs.take_async(timeout)
