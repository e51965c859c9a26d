"""The way of a payload out of vLLM-Omni: from the connector in one of its workers, over a socket, to the replica.

vLLM-Omni moves data between two stages from worker to worker, through a connector. Where the next stage is one of Omnibus,
the connector is ours, and the replica sends the payload on as an output of its stage.
"""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

from vllm_omni.distributed.omni_connectors.connectors.base import OmniConnectorBase
from vllm_omni.distributed.omni_connectors.factory import OmniConnectorFactory

from omnibus.errors import EngineError

CONNECTOR = "OmnibusCourier"
SEND_TIMEOUT = 30.0
"""Seconds that the replica may take to accept a payload."""
RECEIVE_TIMEOUT = 30.0
"""Seconds in which the payload of a finished request must arrive."""


def register() -> None:
    """Make the connector known to vLLM-Omni; a plugin that vLLM calls in each of its processes."""
    if CONNECTOR not in OmniConnectorFactory.list_registered_connectors():
        OmniConnectorFactory.register_connector(CONNECTOR, Courier)


class Courier(OmniConnectorBase):
    """The connector, in a worker of vLLM-Omni."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._address = str(config["address"])

    def put(
        self,
        from_stage: str,  # noqa: ARG002 the interface of connectors
        to_stage: str,  # noqa: ARG002
        put_key: str,
        data: Any,
    ) -> tuple[bool, int, dict[str, Any] | None]:
        packed = self.serialize_obj(data)
        with socket.socket(socket.AF_UNIX) as replica:
            replica.settimeout(SEND_TIMEOUT)
            replica.connect(self._address)
            replica.sendall(f"{put_key}\n".encode())
            replica.sendall(packed)
        return True, len(packed), {"size": len(packed)}

    def get(self, from_stage: str, to_stage: str, get_key: str, metadata: dict[str, Any] | None = None) -> None:
        """Nothing: the payloads of other stages come with the prompt."""

    def cleanup(self, request_id: str) -> None:
        """Nothing is kept here."""

    def health(self) -> dict[str, Any]:
        return {"status": "healthy"}

    def close(self) -> None:
        """Every payload has a connection of its own."""


class Mailbox:
    """The replica's end: payloads by the id of the request that they belong to. One that nobody expects is dropped."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder / "payloads")
        self._expected: dict[str, asyncio.Future[bytes]] = {}
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        self._server = await asyncio.start_unix_server(self._receive, self.address)

    def expect(self, request_id: str) -> None:
        """Keep the payload of this request when it comes; `forget` ends it."""
        self._expected[request_id] = asyncio.get_running_loop().create_future()

    async def take(self, request_id: str) -> bytes:
        """The payload of an expected request; raises EngineError when it does not come."""
        try:
            return await asyncio.wait_for(self._expected[request_id], RECEIVE_TIMEOUT)
        except TimeoutError as error:
            raise EngineError("vLLM-Omni made no payload for the next stage") from error

    def forget(self, request_id: str) -> None:
        self._expected.pop(request_id).cancel()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(SEND_TIMEOUT):
                key = (await reader.readline()).decode().rstrip("\n")
                payload = await reader.read()  # to the end of the connection
            # vLLM-Omni's keys are its own ids, which begin with those that it was given.
            for request_id, arrived in self._expected.items():
                if key.startswith(request_id) and not arrived.done():
                    arrived.set_result(payload)
        except TimeoutError:
            pass  # the request fails in `take`
        finally:
            writer.close()
