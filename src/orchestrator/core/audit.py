"""The audit log's chain: each entry's hash covers the entry and the hash of the one before it."""

from collections.abc import Iterable
from hashlib import sha256
from typing import Final

from msgspec.structs import replace

from orchestrator.core.jsontext import canonical
from orchestrator.core.records import AuditEntry

BEGINNING: Final = bytes(32)
"""What stands for the hash before the first entry of a tenant."""


def chained(entry: AuditEntry, last: tuple[int, bytes] | None) -> AuditEntry:
    """Return `entry` as the next one of its tenant after `last`, of which seq and hash count."""
    seq, before = (last[0] + 1, last[1]) if last is not None else (1, BEGINNING)
    placed = replace(entry, seq=seq)
    return replace(placed, hash=_hash(placed, before))


def broken(entries: Iterable[AuditEntry], before: bytes = BEGINNING, seq: int = 0) -> int | None:
    """Return the seq at which a tenant's chain does not hold, None for a whole one.

    `entries` come in order of seq, after the entry `seq` whose hash is `before`.
    """
    for entry in entries:
        if entry.seq != seq + 1 or entry.hash != _hash(entry, before):
            return seq + 1
        seq, before = entry.seq, entry.hash
    return None


def _hash(entry: AuditEntry, before: bytes) -> bytes:
    said = [
        entry.tenant, entry.seq, entry.at, entry.actor, entry.action, entry.target, entry.detail,
    ]  # fmt: skip
    return sha256(before + canonical(said)).digest()
