"""Databases as each released schema left them, and what must come out of them for ever.

`sqlite-N.db.xz` and `postgres-N.sql.xz` were written by servers of schema N, the last of which was
killed; beside each, `.json` says of every run how it stood and the hash of the bytes of its log.
"""

import lzma
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple

import asyncpg
import msgspec

from orchestrator.core.audit import broken
from orchestrator.core.records import AuditEntry, Key, Message, Run
from orchestrator.ports import Store

FOLDER: Final = Path(__file__).parent
ENDINGS: Final = {"sqlite": "db.xz", "postgres": "sql.xz"}
_ALL: Final = 100_000


class Told(msgspec.Struct, frozen=True):
    """A run: its state, its last seq, and the hash of all its events as they are served."""

    status: str
    head: int
    trimmed: bool
    sha256: str


class Outcome(msgspec.Struct, frozen=True):
    """What a database holds: runs and transcripts by their ids, entries in the audit log."""

    runs: dict[str, Told]
    sessions: dict[str, str]
    audit: int
    keys: int


class Golden(NamedTuple):
    """One database of the past."""

    store: str
    schema: int

    @property
    def packed(self) -> Path:
        """Return where its bytes are."""
        return FOLDER / f"{self.store}-{self.schema}.{ENDINGS[self.store]}"

    @property
    def expected(self) -> Outcome:
        """Return what must come out of it."""
        return msgspec.json.decode(self._json.read_bytes(), type=Outcome)

    @property
    def _json(self) -> Path:
        return FOLDER / f"{self.store}-{self.schema}.json"

    def unpacked(self) -> bytes:
        """Return the file of SQLite, or the statements that PostgreSQL is given."""
        return lzma.decompress(self.packed.read_bytes())

    def keep(self, data: bytes, outcome: Outcome) -> None:
        """Write it; raises FileExistsError where it is there already, for it never changes."""
        with self.packed.open("xb") as file:
            file.write(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))
        with self._json.open("xb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(outcome), indent=1) + b"\n")


def goldens() -> list[Golden]:
    """Return all there are."""
    found = []
    for path in FOLDER.glob("*.json"):
        store, _, schema = path.stem.partition("-")
        found.append(Golden(store, int(schema)))
    return sorted(found)


async def outcome_of(store: Store) -> Outcome:
    """Return what a database holds."""
    runs = await store.find(Run, order="key", limit=_ALL)
    messages = await store.find(Message, order="pos", limit=_ALL)
    entries = await store.find(AuditEntry, order="seq", limit=_ALL)
    assert broken(entries) is None
    return Outcome(
        runs={run.run_id: await _told(store, run) for run in runs},
        sessions={
            session: _hash(map(_line, (one for one in messages if one.session_id == session)))
            for session in sorted({message.session_id for message in messages})
        },
        audit=len(entries),
        keys=await store.count(Key),
    )


async def _told(store: Store, run: Run) -> Told:
    data, after = list[bytes](), 0
    while events := await store.read(run.run_id, after):
        data += [event.data for event in events]
        after = events[-1].seq
    return Told(str(run.status), run.head, run.trimmed, _hash(data))


def _line(message: Message) -> bytes:
    said: list[Any] = [
        message.message_id, message.run_id, message.role, message.content, message.metadata,
    ]  # fmt: skip
    return msgspec.json.encode(said)


def _hash(parts: Iterable[bytes]) -> str:
    return sha256(b"\n".join(parts)).hexdigest()


async def restore(url: str, statements: bytes) -> None:
    """Carry out what `pg_dump` wrote, on an empty database."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statements.decode())
    finally:
        await connection.close()
