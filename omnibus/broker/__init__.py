"""The broker: the only folder that imports nats."""

import sys

# nats-py imports aiohttp wherever that is installed, 13 MiB a process, and needs it for WebSockets alone: see `nats_client`.
if "aiohttp" not in sys.modules:
    sys.modules["aiohttp"] = None  # type: ignore[assignment] # by which an import of it fails
    try:
        import nats.aio.transport  # noqa: F401
    finally:
        del sys.modules["aiohttp"]
