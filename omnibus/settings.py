"""Settings of an operator: `OMNIBUS_*` variables, read once at the edge and passed down as values.

No other module reads the environment. Flags of a command override these.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ByteSize, Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

DEFAULT_NATS_URL = "nats://127.0.0.1:4222"
LogFormat = Literal["auto", "console", "color", "json"]
"""`auto` is console, with colors, on a terminal and JSON elsewhere; `color` has colors everywhere."""
Words = Annotated[tuple[str, ...], NoDecode]


def default_state_dir() -> Path:
    """The state directory where no other is named."""
    return Path.home() / ".local" / "state" / "omnibus"


def cache_dir() -> Path:
    """The folder for what can be made again, such as converted checkpoints: `OMNIBUS_CACHE_DIR`."""
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("OMNIBUS_CACHE_DIR") or f"{caches}/omnibus").expanduser()


class Settings(BaseSettings):
    """Settings of one process."""

    model_config = SettingsConfigDict(env_prefix="OMNIBUS_", env_ignore_empty=True, extra="ignore", frozen=True)

    # The broker
    nats_url: str | None = None
    """An existing server or cluster, comma-separated; None: discovered (see broker.discovery.discover)."""
    nats_system_url: str | None = None
    """The same with a user of the system account that may subscribe to disconnect events; None: discovered, or done without."""
    nats_account: str = "OMNI"
    """The account whose disconnect events are watched."""
    nats_credentials: Path | None = None
    """A file with an nkey, a .creds file or one line user:password; or a folder with a file for each role."""
    nats_system_credentials: Path | None = None
    """The same for the user of the system account."""
    nats_tls_ca: Path | None = None
    """Certificate authority of the servers; None: ca.pem beside the credentials, else those of the machine."""
    nats_tls_cert: Path | None = None
    nats_tls_key: Path | None = None
    """A client certificate and its key; None: those beside the credentials, of the same name, if there are any."""
    nats_replicas: int = 1
    """Copies of every stream and bucket; 3 in a cluster of three."""
    nats_server: Path | None = None
    """The nats-server binary of the embedded mode; None: the one installed beside Python, or on PATH."""
    nats_profile: Literal["dev", "balanced", "durable"] = "balanced"
    """The file of nats/ that the embedded server runs with."""
    nats_host: str = "127.0.0.1"
    """Address on which the embedded server listens: an IPv4 address of this machine, or 0.0.0.0."""
    nats_security: Path | None = None
    """A folder that `omnibus nats credentials` has made, for the embedded server: its users and its TLS certificate."""
    nats_insecure: bool = False
    """Listen beyond loopback without TLS, protected by the password alone, which everybody on the network can read."""
    nats_port: int = 4222
    """The port of the embedded server. The default gives way to a free one; one that was asked for and is taken is refused."""
    state_dir: Path = Field(default_factory=default_state_dir)
    """Folder in which an embedded server keeps its data, its log and its address."""

    # Workers
    hang_timeout: float = Field(default=60.0, ge=0.0, allow_inf_nan=False)
    """Seconds after its heartbeat timeout at which a silent replica whose process lives is killed, to start again; 0: never."""

    shared_memory: ByteSize = ByteSize(1 << 30)
    """Bytes of shared memory, at most, that each replica hands its large outputs over in, to stages on its host; 0: none. A
    fraction of it is taken while nothing is large, and never more than half of what the host has left."""
    payload_address: str = ""
    """The address of this machine on which each replica serves its large outputs to stages on other hosts, on a port of its own,
    unencrypted: name one of a network that you trust. Empty: other hosts have them by the broker."""
    allowed_modules: Words = ()
    """Names that specifications from the broker may have loaded; see pipeline.allowed_code."""

    output_store: str = ""
    """Where large outputs of requests go, such as s3://bucket/prefix or file:///folder, the same for workers, front doors and
    clients; needs the extra `outputs`. Empty: the broker, until their records expire."""

    # Logs and traces
    log_level: str = "info"
    log_format: LogFormat = "auto"
    otlp_endpoint: str | None = None
    """Endpoint to which spans go over OTLP, such as http://collector:4317 (gRPC) or http://collector:4318 (HTTP); needs the extra
    `otel`. None: where OpenTelemetry's own OTEL_EXPORTER_OTLP_ENDPOINT says, else nowhere."""
    otlp_protocol: Literal["grpc", "http/protobuf"] | None = None
    """None: as OTEL_EXPORTER_OTLP_PROTOCOL says, else HTTP for port 4318, and gRPC for others."""

    # Metrics
    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    """Port on which `serve`, `worker` and `orchestrator` show their metrics; 0: a free one. None: not at all."""
    metrics_host: str = "127.0.0.1"
    """Address on which they do: anybody who reaches it can read them."""
    metrics_dir: Path | None = None
    """A folder in which several processes of this machine keep their metrics: each shows those of all."""
    metrics_name: str = "process"
    """The name of this process there, which its next life has, too."""

    # The front door
    host: str = "127.0.0.1"
    port: int = 8000
    frontdoors: int = Field(default=1, ge=1)
    """Processes that answer on the port."""
    share_port: bool = False
    """Listen beside other processes of this user on the same port (SO_REUSEPORT), where they do so, too."""
    api_keys: Words = ()
    """Accepted bearer tokens, comma-separated, each with `admin:` before it where it is an admin's."""
    api_keys_file: Path | None = None
    """The hashes of more, see `omnibus keys`; None: `api-keys.json` in the state directory. Without any, no key is asked for."""
    closed: Words = ()
    """Pages that ask for a key, too: metrics, docs, ui."""
    max_file_bytes: ByteSize = ByteSize(512 << 20)
    """Bytes that one upload to `/v1/files` may have."""
    file_store: str = ""
    """Where the bytes of files that callers keep go, such as s3://bucket/prefix or file:///folder, the same for all front doors;
    needs the extra `outputs`. Empty: the broker."""
    files_quota: ByteSize = ByteSize(10 << 30)
    """Bytes that the files of a tenant may take together."""
    keep_files: float = Field(default=30 * 86_400.0, ge=60, allow_inf_nan=False)
    """Seconds that a file is kept whose upload does not say."""
    keep_videos: float = Field(default=7 * 86_400.0, ge=60, allow_inf_nan=False)
    """Seconds that a video is kept, from its creation on."""
    keep_responses: float = Field(default=30 * 86_400.0, ge=60, allow_inf_nan=False)
    """The same of a response."""
    keep_batch_outputs: float = Field(default=30 * 86_400.0, ge=60, allow_inf_nan=False)
    """Seconds that the files of a batch are kept which does not say."""
    public_url: str = ""
    """The address by which callers reach the front door, for links in answers; empty: the one that a request came to."""
    image_link_lifetime: float = Field(default=3600.0, ge=1, allow_inf_nan=False)
    """Seconds that images which an answer links to are kept."""
    allowed_media_domains: Words = ()
    """Hosts from which files of requests are fetched by their web addresses: example.com, *.example.com, * for all, with :PORT
    where that is not the usual one; empty: none."""
    allowed_networks: Words = ()
    """Networks beside the public addresses that the front door connects to for requests and webhooks, such as 10.1.0.0/16."""
    media_timeout: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    """Seconds within which the files of a request come from the web, all together."""
    served_model_name: str | None = None
    """The name under which the pipeline is served; None: its own."""
    keep_alive: int = Field(default=75, ge=1)
    """Seconds after which an idle connection is closed; longer than proxies and clients in front keep theirs."""
    max_connections: int = Field(default=8192, ge=1)
    """Connections that may be open at once; never more than the process may have open files."""
    allowed_origins: Words = ()
    """Origins whose pages may call from a browser (CORS), `*` for all; empty: none."""
    allowed_methods: Words = ("*",)
    allowed_headers: Words = ("*",)
    allow_credentials: bool = False
    """Whether those pages may send cookies."""

    @property
    def keys_path(self) -> Path:
        """The file of API keys, which may be missing."""
        return self.api_keys_file or self.state_dir / "api-keys.json"

    @property
    def tracing(self) -> tuple[str | None, str | None]:
        """Endpoint and protocol of traces."""
        if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
            return None, None
        names = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
        endpoint = self.otlp_endpoint or next((os.environ[name] for name in names if os.environ.get(name)), None)
        names = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
        return endpoint, self.otlp_protocol or next((os.environ[name] for name in names if os.environ.get(name)), None)

    def environment(self) -> dict[str, str]:
        """The variables by which a child process has the same settings."""
        return {f"OMNIBUS_{name.upper()}": _text(getattr(self, name)) for name in self.model_fields_set}

    @field_validator(
        "api_keys", "closed", "allowed_modules", "allowed_origins", "allowed_methods", "allowed_headers",
        "allowed_media_domains", "allowed_networks", mode="before",
    )  # fmt: skip
    @classmethod
    def _split(cls, value: object) -> object:
        """A list as vLLM's flags have it, in JSON, or with commas."""
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("["):
            return tuple(json.loads(value))
        return tuple(word.strip() for word in value.split(",") if word.strip())

    @field_validator("closed")
    @classmethod
    def _known_pages(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := set(value) - {"metrics", "docs", "ui"}:
            raise ValueError(f"metrics, docs and ui can be closed, not {', '.join(sorted(unknown))}")
        return value

    @field_validator("nats_replicas")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value not in (1, 3, 5):
            raise ValueError("copies are 1, 3 or 5: an even number gains nothing")
        return value

    @field_validator("state_dir")
    @classmethod
    def _expand(cls, value: Path) -> Path:
        return value.expanduser()


_OF_THIS_PYTHON = frozenset({
    "CONDA_DEFAULT_ENV", "CONDA_PREFIX", "PYTHONEXECUTABLE", "PYTHONHOME", "PYTHONNOUSERSITE", "PYTHONPATH",
    "PYTHONPLATLIBDIR", "PYTHONSTARTUP", "PYTHONUSERBASE", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__",
})  # fmt: skip
"""Variables by which an interpreter finds its packages."""


def inherited_environment(*, other_python: bool = False) -> dict[str, str]:
    """The environment of this process for its children, without the keys of callers.

    A child of another interpreter gets nothing that would have it import the packages of this one.
    """
    kept = {name: value for name, value in os.environ.items() if name.upper() != "OMNIBUS_API_KEYS"}
    return {name: value for name, value in kept.items() if not (other_python and name in _OF_THIS_PYTHON)}


def _text(value: object) -> str:
    if value is None:
        return ""  # is the default
    return ",".join(value) if isinstance(value, tuple) else str(value)
