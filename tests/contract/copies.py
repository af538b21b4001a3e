"""A database that holds some of everything, its copies, and how two stores are compared."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from threading import Thread
from typing import Any

from orchestrator import app
from orchestrator.core import ids
from orchestrator.core.events import AgentStreamDelta, draft
from orchestrator.core.ops import Insert, Op, Put
from orchestrator.core.records import (
    NEXT,
    RECORDS,
    WAITING,
    AuditEntry,
    Blob,
    Cursor,
    Instance,
    Invocation,
    Key,
    Lease,
    Run,
    Session,
    Timer,
)
from orchestrator.engine.audit import Audit
from orchestrator.ports import Store
from orchestrator.settings import load
from orchestrator.stores import copying, postgres, sqlite
from orchestrator.stores.copying import Copied, Told
from orchestrator.stores.postgres.clock import WorldClock
from orchestrator.testing import records as r
from orchestrator.testing.fake_world import FakeWorld
from orchestrator.testing.records import committed

from .. import postgres as running

DAY = 86_400_000
ALL = 1_000_000
ALICE = "Ålice 🦀 ~"


def minted(number: int, age_days: int, world: FakeWorld) -> str:
    return ids.mint("run", world.now() - age_days * DAY, bytes([number]) * 16, "aa")


async def fill(store: Store, world: FakeWorld) -> None:
    """Put some of everything into a store; its highest number is that of a run that is gone."""
    await _talk(store, world)
    await _surround(store)
    gone = r.run(99, run_id=minted(99, 90, world))
    await committed(store, r.accept(gone))
    await committed(store, r.end(gone, at=1))
    assert (await store.trim(2, 0)).runs == 1
    # Once more: what the row of an open run does not know yet.
    await committed(store, r.append(r.run(2), *r.deltas(5)))


async def _talk(store: Store, world: FakeWorld) -> None:
    """Make runs of many days: thin ones and fat ones, ended, trimmed, open, waiting."""
    await store.renew("gone", 1000)
    # Newer ids come first, so that days and numbers do not go together.
    for n, age in ((10, 0), (11, 40), (12, 3), (13, 40)):
        made = r.run(n, ALICE, run_id=minted(n, age, world), forks=[2, 4], labels={"k": "é\0"})
        await committed(store, r.accept(made, Insert(r.message(n, ALICE))))
        await committed(store, r.append(made, *r.deltas(700), attempting=True))
        await committed(store, r.append(made, *r.deltas(1)), r.append(made, *r.deltas(2)))
        if n == 13:
            await committed(store, r.end(made, at=10))
    assert (await store.trim(0, 11)).deltas == 703
    fat = r.run(1, error_message="a\0b", usage={"tokens": 7}, final_message=[{"type": "text"}])
    await committed(store, r.accept(fat, Insert(r.message(1, pos=WAITING))))
    text = '"\\\u0000\u2028🦀' + "é" * 150_000
    word = draft("evt_x", r.AT, AgentStreamDelta(text=text))
    await committed(store, r.append(fat, *[word] * 3, *r.deltas(20)))
    await committed(store, r.accept(r.run(2, "other", parent_run_id="run_x", depth=1)))
    assert len(await store.claim("gone", 1, [r.run(2).run_id])) == 1
    await committed(store, r.begin(r.run(2)))


async def _surround(store: Store) -> None:
    made = r.run(1)
    records = [
        r.agent("zed", auth=b"\0sealed\xff", name="n\0ul", scopes=["a"], draining=True),
        r.agent("Ädam", tenant="ünder"),
        Invocation(run_id=made.run_id, role="user", content=[{"type": "x\0"}], scopes=[]),
        Invocation(run_id="run_z", role="user", content="text", context={"ü": 1}, timeout_ms=5),
        Timer(run_id=made.run_id, kind="deadline", due_at=r.AT),
        Cursor(follower="ingress", run_id=made.run_id, seq=4, updated_at=r.AT),
        Blob(name="ours", data=bytes(range(256)) * 9000, created_at=r.AT),
        Blob(name="empty", data=b"", created_at=r.AT),
        Instance(
            tenant="ünder", agent_id="Ädam", instance_id="i-1", endpoint="http://i", draining=True,
            max_concurrency=2, created_at=1, updated_at=2,
        ),
        Session(tenant="t", session_id="s", user_id="u\0", created_at=1, updated_at=2),
        Key(key_id="key_1", tenant="t", name="é", role="admin", digest=b"\1" * 32,
            limits={"*": "1/s"}, created_at=1, created_by="me", expires_at=2),
        *(r.key(name, made, name.encode()) for name in ("a\0z", "aa", "ab", "a", "~", "é")),
    ]  # fmt: skip
    await committed(store, *(Op(writes=(Put(record),)) for record in records))
    for n in range(3):
        for tenant in ("default", "t"):
            entry = AuditEntry(
                tenant=tenant, seq=NEXT, at=n, actor="é", action="key.create", target="key_1",
                detail='{"a":"\\u0000"}',
            )  # fmt: skip
            await committed(store, Op(writes=(Insert(entry),)))


def silent(*_: Any) -> None:
    """Listen to nothing."""


async def moved(path: Path, target: str, told: Told = silent) -> dict[str, Copied]:
    """Copy a database, as the command does; return what is said of each table."""
    settings = load({"DATABASE_URL": f"file:{path}"})
    return {one.table: one for one in await app.copy(settings, target, told)}


async def held(target: str) -> dict[str, int]:
    """Return how many rows there are in each table of the target."""
    return {
        part.name: (await running.ask(target, f"SELECT count(*) FROM {part.name}"))[0][0]  # noqa: S608  # ours
        for part in copying.PARTS
    }


def as_kept(value: Any) -> Any:
    """Return a value as PostgreSQL keeps it."""
    return value.replace("\0", "\ufffd") if isinstance(value, str) else value


async def everything(store: Store) -> dict[Any, Any]:
    """Return all that a store holds and another must hold as well, as its own reads say."""
    found: dict[Any, Any] = {}
    for kind in RECORDS:
        if kind is Lease:
            continue
        rows = await store.find(kind, order=kind.KEY[-1], limit=ALL)
        kept = [type(row)(**{f: as_kept(getattr(row, f)) for f in row.__struct_fields__})
                for row in rows if getattr(row, "name", "") not in {"host", "probe"}]  # fmt: skip
        found[kind.TABLE] = sorted(kept, key=repr)
    for run in await store.find(Run, limit=ALL):
        for after, limit in ((0, ALL), (3, 2), (255, 600), (run.head - 1, 5)):
            found[run.run_id, after] = await replay(store, run.run_id, after, limit)
    for tenant in ("default", "t", "ünder"):
        found["audit", tenant] = await Audit(store, FakeWorld()).verify(tenant)
    return found


async def replay(store: Store, run_id: str, after: int, limit: int) -> list[bytes]:
    """Return the events of a run, page by page."""
    found: list[bytes] = []
    while len(found) < limit:
        batch = list(await store.read(run_id, after, limit - len(found)))
        if not batch:
            break
        found += [event.data for event in batch]
        after = batch[-1].seq
    return found


async def opened(stack: AsyncExitStack, path: Path, target: str, world: FakeWorld) -> list[Store]:
    """Return the stores on both."""
    stores: list[Store] = [
        await sqlite.open_store(f"file:{path}", world=world),
        await postgres.open_store(target, world=world, clock=WorldClock(world)),
    ]
    for store in stores:
        stack.push_async_callback(store.close)
    return stores


def beside(asked: Callable[[], Any]) -> Any:
    """Run something in a loop of its own while ours stands still."""
    found: list[Any] = []
    thread = Thread(target=lambda: found.append(asyncio.run(asked())))
    thread.start()
    thread.join()
    return found[0]
