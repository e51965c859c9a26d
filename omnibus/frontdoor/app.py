"""The application: routes, errors and middleware put together."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.metadata import version

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware

from omnibus.client.producer import Producer
from omnibus.frontdoor import error_answers
from omnibus.frontdoor.access import ASSETS, ApiKeys
from omnibus.frontdoor.api_keys import KeyTable
from omnibus.frontdoor.context import FrontDoorContext, Options, Replicas
from omnibus.frontdoor.endpoints import (
    chat,
    completions,
    images,
    models,
    probes,
    replica_control,
    request_status,
    speech,
)
from omnibus.frontdoor.error_answers import ERROR_RESPONSES
from omnibus.frontdoor.middleware import OWN_ID, REQUEST_ID, Observed
from omnibus.frontdoor.served import Pipelines, ServedModels
from omnibus.observability.metrics import Metrics
from omnibus.observability.tracing import Tracing

EXPOSED_HEADERS = (REQUEST_ID, OWN_ID, "Retry-After", "Server-Timing", "x-should-retry")
"""Headers of answers that pages may read."""
_ENDPOINTS = (chat, completions, images, speech, models, request_status, replica_control, probes)


def create_app(
    producer: Producer,
    pipelines: Pipelines,
    *,
    replicas: Replicas,
    connected: Callable[[], bool],
    options: Options | None = None,
    metrics: Metrics | None = None,
    tracing: Tracing | None = None,
) -> FastAPI:
    """The front door over a producer. The caller owns everything that is passed in, and closes it after the server.

    `replicas` returns the replicas of a pipeline; `connected` says whether the broker can be reached now, for the probes.
    """
    options = options if options is not None else Options()
    metrics = metrics if metrics is not None else Metrics()
    app = FastAPIOffline(
        title="Omnibus",
        version=version("omnibus"),
        redirect_slashes=False,
        responses=ERROR_RESPONSES,
        static_url=ASSETS,
    )
    app.state.context = FrontDoorContext(
        producer=producer,
        models=ServedModels(pipelines, options.aliases),
        options=options,
        replicas=replicas,
        metrics=metrics,
        connected=connected,
        started=int(time.time()),
    )
    for module in _ENDPOINTS:
        app.include_router(module.router)
    error_answers.install(app)
    # The last one added is the outermost: every refusal has an id and is logged, also those that a browser asks for before
    # it sends a key; the key comes before the body.
    keys = KeyTable(options.api_keys, options.api_keys_file)
    app.add_middleware(ApiKeys, keys=keys, closed=options.closed, admin_paths=replica_control.ADMIN_PATHS)
    if options.allowed_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=options.allowed_origins, allow_methods=options.allowed_methods,
            allow_headers=options.allowed_headers, allow_credentials=options.allow_credentials,
            expose_headers=EXPOSED_HEADERS,
        )  # fmt: skip
    app.add_middleware(Observed, metrics=metrics, tracing=tracing or Tracing())
    return app
