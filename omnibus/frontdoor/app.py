"""The application: routes, errors and middleware put together."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.metadata import version

from fastapi import FastAPI
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import ASGIApp

from omnibus.broker.listening import is_loopback
from omnibus.client.cluster_feed import ClusterFeed
from omnibus.client.producer import Producer
from omnibus.files.stored_bodies import StoredBodies
from omnibus.files.tenant_usage import TenantUsage
from omnibus.frontdoor import error_answers
from omnibus.frontdoor.access import ASSETS, AccessTable, ApiKeys
from omnibus.frontdoor.api_keys import KeyTable
from omnibus.frontdoor.body_route import ShortWay
from omnibus.frontdoor.context import FrontDoorContext, Options, Replicas
from omnibus.frontdoor.endpoints import (
    batches,
    chat,
    cluster,
    completions,
    dashboard,
    dead_letter_routes,
    image_edits,
    images,
    latest_requests,
    lora_adapters,
    models,
    probes,
    realtime,
    replica_control,
    replica_orders,
    request_input,
    request_status,
    request_traces,
    responses,
    scoring,
    speech,
    speech_voices,
    stored_responses,
    stored_videos,
    text_embeddings,
    tokens,
    transcription,
    user_files,
    videos,
)
from omnibus.frontdoor.endpoints.stored_videos import POLL_AFTER
from omnibus.frontdoor.error_answers import ERROR_RESPONSES
from omnibus.frontdoor.middleware import OVERHEAD, OWN_ID, REQUEST_ID, Observed
from omnibus.frontdoor.openapi_document import complete_document
from omnibus.frontdoor.outbound.addresses import AddressRule
from omnibus.frontdoor.outbound.web_files import WebFiles
from omnibus.frontdoor.page_origins import PageOrigins
from omnibus.frontdoor.served import Pipelines, ServedModels
from omnibus.observability.metrics import Metrics
from omnibus.observability.tracing import Tracing

EXPOSED_HEADERS = (REQUEST_ID, OWN_ID, POLL_AFTER, "Retry-After", "Server-Timing", OVERHEAD, "x-should-retry")
"""Headers of answers that pages may read."""
_ENDPOINTS = (
    chat, responses, stored_responses, completions, text_embeddings, scoring, images, image_edits, videos, stored_videos, speech,
    speech_voices, transcription, realtime, models, tokens, user_files, batches, latest_requests, request_status, request_traces,
    request_input, replica_control, replica_orders, dead_letter_routes, lora_adapters, cluster, dashboard, probes,
)  # fmt: skip


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
        title="Omnibus", version=version("omnibus"), redirect_slashes=False, responses=ERROR_RESPONSES, static_url=ASSETS
    )  # fmt: skip
    app.state.context = FrontDoorContext(
        producer=producer, models=ServedModels(pipelines, options.aliases), options=options, replicas=replicas,
        feed=ClusterFeed(producer, pipelines.all, replicas), metrics=metrics, connected=connected,
        started=int(time.time()), web=_web_files(options), kept=TenantUsage(options.files_quota),
        storage=StoredBodies(options.file_store) if options.file_store else None,
    )  # fmt: skip
    for module in _ENDPOINTS:
        app.include_router(module.router)
    error_answers.install(app)
    complete_document(app)
    app.middleware_stack = Observed(_guarded(app, options), metrics, tracing or Tracing())
    return app


def _web_files(options: Options) -> WebFiles:
    return WebFiles(
        options.allowed_media_domains, AddressRule.of(options.allowed_networks),
        max_bytes=options.max_body_bytes, timeout=options.media_timeout,
    )  # fmt: skip


def _guarded(app: FastAPI, options: Options) -> ASGIApp:
    """The routes behind the layers that may refuse a request; all of ours, as Starlette's own would answer errors otherwise.

    Every refusal has an id and is counted, also those that a browser asks for before it sends a key; the key comes before
    the body.
    """
    routed = ExceptionMiddleware(AsyncExitStackMiddleware(app.router), handlers=app.exception_handlers)
    keys = KeyTable(options.api_keys, options.api_keys_file)
    guarded: ASGIApp = ApiKeys(ShortWay(routed, app.routes), keys, options.closed, AccessTable(app.routes))
    is_local = is_loopback(options.host)
    guarded = PageOrigins(
        guarded, options.allowed_origins, options.public_url, checks_host=lambda: is_local and not keys.asks()
    )
    if options.allowed_origins:
        guarded = CORSMiddleware(
            guarded, allow_origins=options.allowed_origins, allow_methods=options.allowed_methods,
            allow_headers=options.allowed_headers, allow_credentials=options.allow_credentials,
            expose_headers=EXPOSED_HEADERS,
        )  # fmt: skip
    return guarded
