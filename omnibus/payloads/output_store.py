"""Large outputs of requests in storage of the operator's: S3 and what speaks it, other clouds' object stores, or a folder.

They are written once, under a name of their own, and never removed here: an answer outlives its request, and the lifetime is the
storage's own rule. A reference names the place in full; only what is under the configured one is read.
"""

from __future__ import annotations

import asyncio
import uuid

from omnibus.errors import EngineError, PayloadLost
from omnibus.payloads.operator_storage import first_line, open_storage, reading
from omnibus.payloads.packing import Packed
from omnibus.wire.arriving_bytes import ArrivingBytes
from omnibus.wire.payload import StoredOutput

_PIECE = 4 << 20


class OutputStore:
    """One place for outputs. Its credentials are those that the clouds' own tools find in the environment."""

    def __init__(self, url: str) -> None:
        """`url`: `s3://bucket/prefix`, `gs:`, `az:` or `file:///folder`; raises ConfigError for one that cannot be used."""
        self._base = url.rstrip("/") + "/"
        self._storage = open_storage(url, "OMNIBUS_OUTPUT_STORE")

    async def put(self, packed: Packed, pipeline: str, rid: str) -> StoredOutput:
        """Write an output; raises EngineError when the storage does not take it, so that the attempt counts as failed."""
        name = f"{pipeline}/{rid}/{uuid.uuid4().hex}"
        try:
            await self._storage.put_async(name, list(packed.parts) or [b""])
        except Exception as error:  # the client has a class of its own for each storage
            raise EngineError(f"the output cannot be stored at {self._base}{name}: {first_line(error)}") from error
        return StoredOutput(f"{self._base}{name}")

    async def get(self, output: StoredOutput, nbytes: int, into: memoryview | None = None) -> bytes | memoryview:
        """Read an output, into a buffer of its size where one is given.

        Raises PayloadLost for one that is gone or elsewhere, BrokerUnavailable when there is no answer.
        """
        if not output.url.startswith(self._base):
            raise PayloadLost(f"{output.url} is not under {self._base}, which OMNIBUS_OUTPUT_STORE names")
        return await reading(self._fetched(output.url.removeprefix(self._base), nbytes, into), output.url)

    async def _fetched(self, name: str, nbytes: int, into: memoryview | None) -> bytes | memoryview:
        found = await self._storage.get_async(name)
        if found.meta["size"] != nbytes:
            raise PayloadLost(f"{self._base}{name} has {found.meta['size']} bytes and not {nbytes}")
        arriving = ArrivingBytes(nbytes, into)
        async for piece in found.stream(min_chunk_size=_PIECE):
            await asyncio.to_thread(arriving.add, memoryview(piece))
        return arriving.whole()
