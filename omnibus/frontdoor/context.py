"""The parts that every route works with, made once by `create_app` and found on the application."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Self

from fastapi import Depends, Request

from omnibus.batches.batch_store import BatchStore
from omnibus.client.cluster_feed import ClusterFeed
from omnibus.client.producer import Producer
from omnibus.errors import BrokerUnavailable
from omnibus.files.file_links import FileLinks
from omnibus.files.file_store import FileStore
from omnibus.files.stored_bodies import StoredBodies
from omnibus.files.tenant_usage import TenantUsage
from omnibus.frontdoor.outbound.web_files import WebFiles
from omnibus.frontdoor.responses.response_store import ResponseStore
from omnibus.frontdoor.served import ServedModels
from omnibus.frontdoor.stage_readiness import MissingStage, missing_stages
from omnibus.frontdoor.video_jobs.video_store import VideoStore
from omnibus.observability.metrics import Metrics
from omnibus.pipeline.spec import PipelineSpec
from omnibus.registry.presence.replica_record import ReplicaRecord
from omnibus.settings import Settings
from omnibus.webhooks.webhook_store import WebhookStore

Replicas = Callable[[PipelineSpec], Awaitable[Sequence[ReplicaRecord]]]
"""Returns the replicas of a pipeline as they are now; raises BrokerError when nobody can say."""
REPLICAS_TIMEOUT = 2.0
"""Seconds within which the replicas of a pipeline are known."""
DEFAULT_MAX_BODY = 64 * 1024 * 1024
DEFAULT_MAX_FILE = 512 * 1024 * 1024
DEFAULT_FILES_QUOTA = 10 * 1024 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The settings of an operator. Durations are seconds."""

    api_keys: tuple[str, ...] = ()
    """Accepted bearer tokens, as `api_keys.read_setting` reads them."""
    api_keys_file: Path | None = None
    """A file of more; without it and `api_keys`, no key is asked for."""
    closed: tuple[str, ...] = ()
    """Pages that ask for a key, too: metrics, docs, ui."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Names that pipelines are served by, name → pipeline."""
    max_body_bytes: int = DEFAULT_MAX_BODY
    """A larger body is refused with 413 before it is read."""
    max_file_bytes: int = DEFAULT_MAX_FILE
    """The same of an upload to `/v1/files`."""
    file_store: str = ""
    """The place where the bytes of files go; empty: the broker."""
    files_quota: int = DEFAULT_FILES_QUOTA
    """Bytes that the files of a tenant may take together, and its stored responses likewise."""
    keep_files: float = 30 * 86_400.0
    """How long a file is kept whose upload does not say, and the same of others."""
    keep_videos: float = 7 * 86_400.0
    keep_responses: float = 30 * 86_400.0
    keep_batch_outputs: float = 30 * 86_400.0
    public_url: str = ""
    """The address that links begin with; empty: the one that a request came to."""
    image_link_lifetime: float = 3600.0
    """How long images are kept that an answer links to."""
    allowed_media_domains: tuple[str, ...] = ()
    """Hosts from which files of requests are fetched."""
    allowed_networks: tuple[str, ...] = ()
    """Networks beside the public addresses that may be connected to for that, and for webhooks."""
    media_timeout: float = 10.0
    """How long the files of a request may take."""
    ping_interval: float = 15.0
    """Silence in a stream after which a comment is sent, so that proxies keep it open."""
    first_event_wait: float = 10.0
    """How long a stream's status waits for the first event: a refusal within it still has its own 4xx."""
    host: str = ""
    """The address that the server listens on; on loopback it answers to its own names alone while there are no keys."""
    allowed_origins: tuple[str, ...] = ()
    """Origins whose pages may call from a browser; empty: none."""
    allowed_methods: tuple[str, ...] = ("*",)
    allowed_headers: tuple[str, ...] = ("*",)
    allow_credentials: bool = False

    @classmethod
    def of(cls, settings: Settings, aliases: Mapping[str, str]) -> Self:
        """The options that the settings name."""
        named = {one.name for one in fields(cls)} & Settings.model_fields.keys() - {"api_keys_file"}
        return cls(
            aliases=aliases, api_keys_file=settings.keys_path, **{name: getattr(settings, name) for name in named}
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontDoorContext:
    """The front door's parts."""

    producer: Producer
    models: ServedModels
    replicas: Replicas
    feed: ClusterFeed
    """Entered and closed by who serves the application."""
    options: Options
    metrics: Metrics
    storage: StoredBodies | None
    """Where the bytes of files go instead of the broker."""
    web: WebFiles
    """Files that requests name by their web addresses."""
    kept: TenantUsage
    """Bytes that tenants keep as responses."""
    connected: Callable[[], bool]
    """Whether the broker can be reached now."""
    started: int
    """Seconds since the epoch."""

    @property
    def files(self) -> FileStore:
        """The files of all tenants."""
        return FileStore(self.producer.connection, quota=self.options.files_quota, storage=self.storage)

    @property
    def file_links(self) -> FileLinks:
        """Links to files, which need no key."""
        return FileLinks(self.producer.connection)

    @property
    def batches(self) -> BatchStore:
        """The batches of all tenants."""
        return BatchStore(self.producer.connection)

    @property
    def videos(self) -> VideoStore:
        """The videos of all tenants."""
        return VideoStore(self.producer.connection, self.files)

    @property
    def webhooks(self) -> WebhookStore:
        """The addresses that are called when jobs have ended, and the queue of what is to be sent."""
        return WebhookStore(self.producer.connection)

    @property
    def responses(self) -> ResponseStore:
        """The stored responses of all tenants."""
        return ResponseStore(self.producer.connection, self.kept)

    async def missing_stages(self, spec: PipelineSpec, needed: Iterable[int] | None = None) -> list[MissingStage]:
        """The stages among `needed` (by default all) that have no replica up; raises BrokerError when nobody can say."""
        try:
            async with asyncio.timeout(REPLICAS_TIMEOUT):
                return missing_stages(spec, await self.replicas(spec), needed)
        except TimeoutError as error:
            raise BrokerUnavailable("the broker does not say which replicas there are") from error


async def _context_of(request: Request) -> FrontDoorContext:
    context: FrontDoorContext = request.app.state.context
    return context


Context = Annotated[FrontDoorContext, Depends(_context_of)]
"""A route's parameter of this type is the application's context."""
