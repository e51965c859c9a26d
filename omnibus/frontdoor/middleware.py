"""Every HTTP request gets an id and a log line before a route sees it."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from omnibus.errors import InvalidRequest
from omnibus.frontdoor.error_answers import ServerFault, ShuttingDown, error_json, error_response
from omnibus.frontdoor.headers import sent_header, sent_trace
from omnibus.frontdoor.waiting_time import WAITED, WaitingTime
from omnibus.observability.events import LogEvent
from omnibus.observability.logging import get_logger
from omnibus.observability.metrics import Metrics
from omnibus.observability.tracing import Tracing

REQUEST_ID, OWN_ID = "X-Request-Id", "Omnibus-Request-Id"
OVERHEAD = "x-omnibus-overhead-ms"
"""Milliseconds of the front door's own until an answer began: all but the time that it waited for stages."""
_SENT_ID = re.compile(r"[!-~]{1,255}")
PROBES = ("/live", "/ready", "/health", "/metrics")
"""Paths that probes and `omnibus serve` itself ask for every few seconds; logged at DEBUG only."""
SHUTDOWN_HOOK_TIMEOUT = 1.0
"""Seconds that a caller has to read that the server stops."""
_SERVER_FAULT = 500
_log = get_logger(__name__)


class Observed:
    """Gives every request its id, answers what nobody expected with 500, counts each and logs it: at INFO one that fails, or
    whose caller sent an id; at DEBUG any other, as a line costs more than all the rest that is done here.

    Where GET is served, HEAD is, and a slash at the end of a path changes nothing.

    The id is in `request.state.request_id`, where a route may put another one, and in the answer's `Omnibus-Request-Id`. An
    `X-Request-Id` that the caller sends is logged beside it and comes back; without one, the answer's is the id.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing) -> None:
        self._app, self._metrics, self._tracing = app, metrics, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = _as_routed(scope)
        started = time.perf_counter()
        state = scope.setdefault("state", {})
        state["request_id"] = secrets.token_hex(16)
        waited = state[WAITED] = WaitingTime()
        sent = sent_header(scope, "x-request-id") or None
        app = self._app
        if sent is not None and not _SENT_ID.fullmatch(sent):
            refused = InvalidRequest("an X-Request-Id has 1 to 255 visible characters of ASCII", param=REQUEST_ID)
            sent, app = None, error_response(refused)
        status = 0
        headers: list[tuple[bytes, bytes]] = []

        async def tagged(message: Message) -> None:
            nonlocal status, headers
            if message["type"] == "http.response.start":
                status, rid = message["status"], state["request_id"].encode()
                own = time.perf_counter() - started - waited.seconds
                headers = [*_timed(message["headers"], own), (b"omnibus-request-id", rid)]
                headers.append((b"x-request-id", sent.encode() if sent else rid))
                message["headers"] = headers
            await send(message)

        try:
            state["trace"] = sent_trace(scope)
            traced = self._tracing.provider is not None and scope["method"] == "POST"
            await (self._traced(app, scope, receive, tagged) if traced else app(scope, receive, tagged))
        except asyncio.CancelledError:
            # The server cancels what outlasts its grace. This is the task's root: nothing is left to be cancelled,
            # and the request goes on without its caller, who can read it by its id.
            if any(value.startswith(b"text/event-stream") for _, value in headers):
                await _send_shutdown_notice(send)
            elif not status:
                await error_response(ShuttingDown())(scope, receive, tagged)
        except Exception:  # noqa: BLE001 the root of a request's task
            self._metrics.errors.labels("frontdoor").inc()
            _log.exception(LogEvent.TASK_CRASHED, rid=state["request_id"], where="frontdoor")
            if not status:
                await error_response(ServerFault())(scope, receive, tagged)
        finally:
            self._record(scope, status, time.perf_counter() - started, sent)

    async def _traced(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer under a span, which is under the caller's own; probes and look-ups have none."""
        about = {"http.request.method": scope["method"], "url.path": scope["path"], "url.scheme": scope["scheme"]}
        state, status = scope["state"], 0

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        with self._tracing.span(scope["method"], state["trace"], about, kind="server") as span:
            state["trace"] = dict(span.headers)
            await app(scope, receive, noted)
            route = getattr(scope.get("route"), "path", "")
            span.rename(f"{scope['method']} {route}".strip())
            span.note(
                {"http.route": route, "http.response.status_code": status, "omnibus.request_id": state["request_id"]}
            )
            if status >= _SERVER_FAULT:
                span.fail(str(status))

    def _record(self, scope: Scope, status: int, seconds: float, sent: str | None) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        self._metrics.http_requests.labels(route, str(status)).inc()
        self._metrics.http_seconds.labels(route).observe(seconds)
        rid = scope["state"]["request_id"]
        is_quiet = route in PROBES or (status < 400 and sent is None)
        log = _log.debug if is_quiet else _log.info
        log(
            LogEvent.HTTP_REQUEST,
            rid=rid,
            method=scope["method"],
            route=route,
            status=status,
            seconds=round(seconds, 4),
            **({} if sent is None else {"caller_id": sent}),
        )


def _timed(headers: Iterable[tuple[bytes, bytes]], seconds: float) -> list[tuple[bytes, bytes]]:
    """The headers of an answer with the front door's own time, behind those of the stages."""
    own = b"%.1f" % (seconds * 1000)
    found = [value for name, value in headers if name == b"server-timing"]
    timing = b", ".join((*found, b"frontdoor;dur=" + own))
    others = [one for one in headers if one[0] != b"server-timing"]
    return [*others, (b"server-timing", timing), (OVERHEAD.encode(), own)]


def _as_routed(scope: Scope) -> Scope:
    """The request as the routes know it; the server sends no body to a HEAD."""
    path, method = scope["path"], scope["method"]
    if method != "HEAD" and not path.endswith("/"):
        return scope
    return {**scope, "method": "GET" if method == "HEAD" else method, "path": path.rstrip("/") or "/"}


async def _send_shutdown_notice(send: Send) -> None:
    body = b"data: %b\n\ndata: [DONE]\n\n" % error_json(ShuttingDown())
    async with asyncio.timeout(SHUTDOWN_HOOK_TIMEOUT):
        await send({"type": "http.response.body", "body": body, "more_body": False})
