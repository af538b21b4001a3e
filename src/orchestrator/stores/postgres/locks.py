"""What a batch locks before it writes, always in the same order, so that no two wait in a ring.

First the rows of its runs, by id; then, by number, names for what runs share: sessions, keys,
agents, the audit log of a tenant. Runs of one session are accepted under the session's name, so
they become visible in the order of their keys.
"""

from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import Any, Final

from orchestrator.core.ops import Delete, Insert, Op, Patch, Put, Write
from orchestrator.core.records import (
    NEXT,
    AuditEntry,
    Invocation,
    Message,
    Record,
    Run,
    Session,
    Timer,
)
from orchestrator.stores.postgres.heads import Head

_OF_RUN: Final = frozenset({Run, Invocation, Message, Timer})
"""Written only by whoever has the run's row, or one at a time."""
LOCK: Final = "SELECT count(pg_advisory_xact_lock(k)) FROM unnest($1::bigint[]) AS l (k)"


def runs_of(ops: Iterable[Op]) -> list[str]:
    """Return the ids of the runs that ops change, sorted."""
    return sorted({op.run_id for op in ops if op.run_id is not None and op.create is None})


def names_of(ops: Iterable[Op], heads: Mapping[str, Head]) -> list[int]:
    """Return the numbers of all other locks, sorted; `heads` are those of the runs."""
    return sorted({number for op in ops for number in _numbers(op, heads)})


def names_of_sessions(sessions: Iterable[tuple[str, str]]) -> list[int]:
    """Return the numbers of the locks of (tenant, session id) pairs, sorted."""
    return sorted({_session(*session) for session in sessions})


def _numbers(op: Op, heads: Mapping[str, Head]) -> Iterator[int]:
    if op.create is not None:
        yield _session(op.create.tenant, op.create.session_id)
    for write in op.writes:
        kind, key = _target(write)
        if kind is Message:
            if isinstance(write, Patch) and write.changes.get("pos") == NEXT:
                head = heads.get(op.run_id or "")
                if head is not None:
                    yield _session(head.tenant, head.session_id)
            elif isinstance(write, Insert | Put):
                yield from _of_message(write.record)
        elif kind not in _OF_RUN:
            yield _number(kind.TABLE, *key)


def _of_message(record: Record) -> Iterator[int]:
    if isinstance(record, Message) and record.pos == NEXT:
        yield _session(record.tenant, record.session_id)


def _target(write: Write) -> tuple[type[Record], tuple[Any, ...]]:
    match write:
        case Insert(record=record) | Put(record=record):
            if isinstance(record, AuditEntry):
                return AuditEntry, (record.tenant,)
            return type(record), tuple(getattr(record, column) for column in record.KEY)
        case Patch(kind=kind, key=key) | Delete(kind=kind, key=key):
            return kind, key


def _session(tenant: str, session_id: str) -> int:
    return _number(Session.TABLE, tenant, session_id)


def _number(*names: Any) -> int:
    digest = blake2b("\0".join(map(str, names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, signed=True)
