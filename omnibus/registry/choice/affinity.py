"""Where a request with an affinity key goes: the same replica for everybody who publishes its tasks. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from omnibus.registry.presence.replica_record import ReplicaRecord


def favourite(key: str, replicas: Sequence[ReplicaRecord]) -> ReplicaRecord:
    """The replica that a key belongs to among those that are up; `replicas` must not be empty.

    Rendezvous hashing (Thaler and Ravishankar, 1998): each pair of key and replica has a score, and the highest wins. So
    publishers who see the same replicas agree without a word between them, and nothing is remembered. When a replica
    leaves, its keys alone move, spread over the others; when it or a new one joins, only the keys that become its own
    move, of n replicas one in n.
    """
    return max(replicas, key=lambda replica: _score(key, replica.replica))


def _score(key: str, replica: str) -> bytes:
    # Of the replica's id, not of its life: one that is restarted has its keys back, and nobody else's cache suffers.
    return hashlib.blake2b(f"{key} {replica}".encode(), digest_size=8).digest()
