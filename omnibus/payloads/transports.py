"""The places for payloads that a process reaches besides the broker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

from omnibus.errors import ConfigError
from omnibus.payloads.memory import HostMemory, open_memory
from omnibus.payloads.output_store import OutputStore
from omnibus.payloads.peer import PeerServer
from omnibus.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Transports:
    """Places, None for those that are not there: payloads go by the broker instead."""

    memory: HostMemory | None = None
    """Shared memory of this host."""
    peer: PeerServer | None = None
    """Serves that memory to readers on other hosts."""
    outputs: OutputStore | None = None
    """For large outputs of requests."""

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The places of a process that runs no stage; raises ConfigError."""
        return cls(outputs=OutputStore(settings.output_store) if settings.output_store else None)

    @classmethod
    @contextmanager
    def open(cls, settings: Settings, pipeline: str, *, asks_for_peer: bool) -> Iterator[Self]:
        """The places of a replica, as long as the context lasts; raises ConfigError.

        An edge that asks for a peer has one on loopback where no address is set.
        """
        memory = open_memory(pipeline, settings.shared_memory)
        address = settings.payload_address or ("127.0.0.1" if asks_for_peer else "")
        try:
            peer = _open_peer(address) if address and memory is not None else None
            try:
                yield cls(memory=memory, peer=peer, outputs=cls.of(settings).outputs)
            finally:
                if peer is not None:
                    peer.close()
        finally:
            if memory is not None:
                memory.close()


def _open_peer(address: str) -> PeerServer:
    try:
        return PeerServer(address)
    except OSError as error:
        raise ConfigError(
            f"--payload-address {address}: name one address of this machine, which other hosts reach: {error}"
        ) from error
