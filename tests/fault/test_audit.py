"""The audit log: every act is in it with who did it, and nothing in it is touched unseen."""

import asyncio
import random
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any, NamedTuple

import apsw
import msgspec
import pytest
from msgspec.structs import replace

from orchestrator.api.routes import ROUTES
from orchestrator.app import open_engine
from orchestrator.core import access
from orchestrator.core.audit import chained
from orchestrator.core.records import AuditEntry
from orchestrator.engine import Engine, NewKey, Registration
from orchestrator.engine.audit import Audit
from orchestrator.settings import load

from ..processes import Answer, Running, request, until
from ..rigs import Tally

ACTS = {"agents:write", "keys:write", "tokens:write", "secrets:write", "runs:cancel"}
NO_ACTS = {"heartbeat"}
"""Routes under those permissions that nobody reads in an audit."""
PATIENT = {"max_attempts": 9, "backoff_ms": 60_000, "max_backoff_ms": 60_000}
OURS, THEIRS = "default", "other"
WHERE = "WHERE tenant = ? AND seq = ?"
TEXTS = ("tenant", "actor", "action", "target", "detail")


class Desk:
    """Asks one server, and keeps what ought to be in its audit log."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.expected: list[tuple[str, str, str]] = []
        self.done: set[str] = set()

    def ask(self, key: str, method: str, path: str, body: Any = None) -> Answer:
        return request(method, self.url + path, body, {"Authorization": f"Bearer {key}"})

    def act(
        self, key: str, route: str, entry: tuple[str, str, str], body: Any = None, **part: str
    ) -> Answer:
        """Carry out an act by its route's name and expect `entry` (actor, action, target)."""
        found = next(one for one in ROUTES if one.name == route)
        answer = self.ask(key, found.method, found.path.format(**part), body)
        assert answer.status in {200, 201}, answer.body
        self.done.add(route)
        self.expected.append(entry)
        return answer

    def make(self, key: str, actor: str, role: str, **more: Any) -> tuple[str, str]:
        """Make a key; return its text and its id."""
        wanted = {"name": role, "role": role, **more}
        made = self.act(key, "create_key", (actor, "key.create", ""), wanted).json()
        self.expected[-1] = (actor, "key.create", made["info"]["key_id"])
        return made["key"], made["info"]["key_id"]

    def open_run(self, key: str) -> str:
        body = {"session_id": "s", "agent_id": "a", "input_message": {"content": "x"}}
        return str(self.ask(key, "POST", "/v1/runs", body).json()["run_id"])

    def entries(self, key: str) -> list[dict[str, Any]]:
        entries = self.ask(key, "GET", "/v1/audit?limit=1000").json()["entries"]
        return [entry for entry in entries if not entry["action"].startswith("security.")]


def test_every_act_is_an_entry_with_who_did_it(start_server: Callable[..., Running]) -> None:
    root = token_hex(32)
    desk = Desk(start_server(ADMIN_KEY=root).url)
    ops, ops_id = desk.make(root, "admin_key", "admin")
    who = f"key:{ops_id}"
    own, own_id = desk.make(ops, who, "agent", agent_id="a")
    agent = {"agent_id": "a", "name": "A", "endpoint": "http://127.0.0.1:9", "retry": PATIENT}
    desk.act(ops, "register_agent", (who, "agent.register", "a"), agent)
    run, other = (desk.open_run(ops) for _ in range(2))
    desk.act(ops, "cancel_run", (who, "run.cancel", run), {"reason": "enough"}, run_id=run)
    desk.act(own, "drain_agent", (f"key:{own_id}", "agent.drain", "a"), agent_id="a")
    made = desk.act(ops, "make_session_token", (who, "session.token", "s"), session_id="s")
    # Who ends a run of his own session is no operator.
    assert desk.ask(made.json()["token"], "POST", f"/v1/runs/{other}/cancel").status == 200
    desk.act(ops, "rotate_key", (who, "key.rotate", own_id), key_id=own_id)
    desk.act(ops, "revoke_key", (who, "key.revoke", own_id), key_id=own_id)
    desk.act(root, "rotate_secrets", ("admin_key", "secrets.rotate", "agents"))
    desk.act(ops, "remove_agent", (who, "agent.remove", "a"), agent_id="a")
    administrative = {r.name for r in ROUTES if r.permission in ACTS and r.method != "GET"}
    assert desk.done == administrative - NO_ACTS, "an act that this test does not know"
    _in_vain(desk, ops, own, own_id, run)
    entries = desk.entries(root)
    assert [(e["actor"], e["action"], e["target"]) for e in entries] == desk.expected
    verified = desk.ask(root, "GET", "/v1/audit/verify").json()
    assert verified["ok"] is True
    last = desk.ask(root, "GET", "/v1/audit?limit=1000").json()["entries"][-1]
    assert (verified["head"], verified["entries"]) == (last["hash"], last["seq"])


def _in_vain(desk: Desk, ops: str, own: str, own_id: str, run: str) -> None:
    """Try what is refused or changes nothing: none of it happened, so none of it is an entry."""
    for key, method, path, status in (
        (ops, "POST", "/v1/agents/a/drain", 404),
        (ops, "DELETE", "/v1/agents/a", 404),
        (ops, "POST", f"/v1/keys/{own_id}/rotate", 409),
        (ops, "POST", f"/v1/keys/{own_id}/revoke", 200),
        (ops, "POST", f"/v1/runs/{run}/cancel", 200),
        (own, "POST", "/v1/secrets/rotate", 401),
        ("", "POST", "/v1/secrets/rotate", 401),
    ):
        assert desk.ask(key, method, path).status == status, path


def test_a_wrong_key_is_noted_without_itself(start_server: Callable[..., Running]) -> None:
    root, wrong = token_hex(32), token_hex(32)
    desk = Desk(start_server(ADMIN_KEY=root).url)
    for _ in range(3):
        assert desk.ask(wrong, "GET", "/v1/runs").status == 401

    def noted() -> list[dict[str, Any]]:
        asked = desk.ask(root, "GET", "/v1/audit?action=security.bad_credential")
        assert wrong.encode() not in asked.body
        return list(asked.json()["entries"])

    entry = until(noted, "the refusal is noted")[0]
    assert (entry["actor"], entry["target"]) == ("nobody", "127.0.0.1 at list_runs")


async def test_acts_at_the_same_time_are_one_chain(start_server: Callable[..., Running]) -> None:
    root = token_hex(32)
    desk = Desk((await asyncio.to_thread(start_server, ADMIN_KEY=root)).url)

    async def register(n: int) -> None:
        agent = {"agent_id": f"a{n}", "name": "A", "endpoint": "http://127.0.0.1:9"}
        asked = await asyncio.to_thread(desk.ask, root, "POST", "/v1/agents/register", agent)
        assert asked.status == 200

    async with asyncio.TaskGroup() as tasks:
        for n in range(50):
            tasks.create_task(register(n))
    entries = desk.entries(root)
    assert [entry["seq"] for entry in entries] == list(range(1, 51))
    assert {entry["target"] for entry in entries} == {f"a{n}" for n in range(50)}
    assert desk.ask(root, "GET", "/v1/audit/verify").json()["ok"] is True


# ------------------------------------------------------------ touched


class Row(NamedTuple):
    """An entry as the file has it."""

    tenant: str
    seq: int
    at: int
    actor: str
    action: str
    target: str
    detail: str
    hash: bytes


@dataclass
class Log:
    """A copy of a database that may be altered, and what verifies its audit log."""

    db: apsw.Connection
    audit: Audit
    rows: list[Row]
    entries: dict[tuple[str, int], AuditEntry]
    heads: dict[str, str]

    def last(self, row: Row) -> bool:
        """Return whether a row is the last of its tenant: without it, the others are a chain."""
        return self.heads[row.tenant] == row.hash.hex()

    def alter(self, *steps: tuple[str, Sequence[Any]]) -> bool:
        """Carry out SQL, all or nothing; False where the primary key has none of it."""
        try:
            with self.db:
                for text, values in steps:
                    self.db.execute(text, values)
        except apsw.ConstraintError:
            return False
        return True

    def restore(self) -> None:
        self.alter(("DELETE FROM audit", ()), ("INSERT INTO audit SELECT * FROM temp.kept", ()))

    async def finds(self) -> str:
        """Return what finds that the log was touched, empty if nothing does.

        `head` is a hash that was noted before and is no longer in a chain that holds.
        """
        found = ""
        for tenant, head in self.heads.items():
            if (await self.audit.verify(tenant)).broken_at is not None:
                return "verify"
            kept = "SELECT count(*) FROM audit WHERE tenant = ? AND hash = ?"
            if not self.db.execute(kept, (tenant, bytes.fromhex(head))).get:
                found = "head"
        return found


async def _acts(engine: Engine) -> None:
    """Do what leaves 62 entries for us and 8 for another tenant, in many alphabets."""
    by = access.local(OURS)
    names = ("ops", "Bücher", "値札", "a“b”c", "x" * 256, 'say "hi" \\ /', "🔑")
    for n in range(8):
        for tenant in (OURS, THEIRS):
            wanted = NewKey(name=names[n % 7], role="admin", tenant=tenant, person=f"p{n}")
            await engine.keys.create(wanted, by)
        endpoint = f"http://127.0.0.1:{9000 + n}/{'p' * n}"
        await engine.agents.register(
            Registration(agent_id=f"agent-{n}", name=names[n % 7], endpoint=endpoint), by
        )
        await engine.agents.drain(f"agent-{n}", by)
        users = ("ann", "\x1f\x0b", "ü" * 40, None)
        await engine.tokens.for_session(
            f"sess-{n}", by, scopes=["read", "invoke"], ttl_s=60 + n, user_id=users[n % 4]
        )
        engine.audit.security("bad_credential", f"127.0.0.{n} at list_runs", OURS)
        await engine.audit.flush(now=True)
        mine = await engine.keys.create(NewKey(name="mine", role="admin"), by)
        await engine.keys.revoke(mine.key.key_id, by)
    for _ in range(6):
        await engine.agents.reseal(by)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hand out a database with an audit log, closed."""
    folder = tmp_path_factory.mktemp("written")

    async def write() -> None:
        async with open_engine(load(_around(folder))) as engine:
            await _acts(engine)

    asyncio.run(write())
    return folder


def _around(folder: Path) -> dict[str, str]:
    return {"DATABASE_URL": f"file:{folder}/orchestrator.db", "INGRESS_URL": "off"}


@asynccontextmanager
async def copied(written: Path, ground: Path) -> AsyncIterator[Log]:
    """Open a copy of the database; its log holds, and has the rows that were written."""
    folder = ground / "copy"
    shutil.copytree(written, folder)
    db = apsw.Connection(f"{folder}/orchestrator.db")
    db.set_busy_timeout(5000)
    db.execute("PRAGMA synchronous=OFF; CREATE TEMP TABLE kept AS SELECT * FROM audit")
    rows = [Row(*row) for row in db.execute("SELECT * FROM audit ORDER BY tenant, seq")]
    async with open_engine(load(_around(folder))) as engine:
        ends = [await engine.audit.verify(tenant) for tenant in (OURS, THEIRS)]
        assert [(end.entries, end.broken_at) for end in ends] == [(62, None), (8, None)]
        heads = {end.tenant: end.head for end in ends}
        listed = [one for t in heads for one in await engine.audit.page(t, limit=100)]
        entries = {(one.tenant, one.seq): one for one in listed}
        yield Log(db, engine.audit, rows, entries, heads)
    db.close()


class Flip(NamedTuple):
    """One bit of one byte of one value of one row, turned over."""

    row: Row
    column: str
    at: int
    bit: int

    def step(self) -> tuple[str, Sequence[Any]]:
        value = getattr(self.row, self.column)
        data = bytearray(_bytes(value))
        data[self.at] ^= 1 << self.bit
        cast = "CAST(? AS TEXT)" if isinstance(value, str) else "?"
        flipped = int.from_bytes(data, signed=True) if isinstance(value, int) else bytes(data)
        text = f"UPDATE audit SET {self.column} = {cast} {WHERE}"  # noqa: S608  # our own columns
        return text, (flipped, self.row.tenant, self.row.seq)


def _bytes(value: Any) -> bytes:
    """Return the bytes that a value is made of; a number has eight."""
    if isinstance(value, int):
        return value.to_bytes(8, signed=True)
    return value.encode() if isinstance(value, str) else bytes(value)


def flips(rows: Sequence[Row]) -> Iterator[Flip]:
    for row in rows:
        for column in Row._fields:
            for at in range(len(_bytes(getattr(row, column)))):
                yield from (Flip(row, column, at, bit) for bit in range(8))


async def test_a_flipped_bit_is_found_wherever_it_is(
    written: Path, ground: Path, tally: Tally, rounds_of: Callable[[int], int]
) -> None:
    tally.expect(*(f"flipped {column}" for column in Row._fields), "found by verify")
    missed: list[Flip] = []
    async with copied(written, ground) as log:
        every = list(flips(log.rows))
        for flip in random.Random(3).sample(every, rounds_of(len(every))):
            if not log.alter(flip.step()):
                tally.fire("not taken by the primary key")
                continue
            how = await log.finds()
            tally.fire(f"flipped {flip.column}")
            tally.fire(f"found by {how}" if how else "missed")
            cut_off = log.last(flip.row) and flip.column in {"tenant", "seq"}
            if how != "verify" and not (how == "head" and cut_off):
                missed.append(flip)
            log.restore()
            tally.round()
        assert await log.finds() == ""
    assert missed == [], f"{len(missed)} missed"


INSERT = "INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
DELETE = "DELETE FROM audit WHERE tenant = ? AND seq = ?"
PLACE = "UPDATE audit SET tenant = ?, seq = ? WHERE tenant = ? AND seq = ?"


class Change(NamedTuple):
    """Something done to the rows; `cut_off` where the chain holds and only its end is another."""

    kind: str
    steps: tuple[tuple[str, Sequence[Any]], ...]
    cut_off: bool = False


def changes(log: Log) -> Iterator[Change]:
    """Yield every deletion, swap, insertion, cut and move, and what reads the same but is not."""
    ours = [row for row in log.rows if row.tenant == OURS]
    for row in log.rows:
        key = (row.tenant, row.seq)
        yield Change("deleted", ((DELETE, key),), cut_off=log.last(row))
        yield from _inserted(row, len(ours) if row.tenant == OURS else len(log.rows) - len(ours))
        yield from _respelled(row, last=log.last(row))
        to = THEIRS if row.tenant == OURS else OURS
        for tenant, seq in ((to, row.seq), (to, 9), (to, 63), ("third", row.seq), ("third", 1)):
            moved = (PLACE, (tenant, seq, *key))
            yield Change("moved", (moved,), cut_off=log.last(row) and tenant == "third")
        yield from _rewritten(log, *key)
    for n, one in enumerate(ours):
        cut = ("DELETE FROM audit WHERE tenant = ? AND seq > ?", (OURS, n))
        yield Change("cut", (cut,), cut_off=True)
        for two in ours[n + 1 :]:
            places = ((one.seq, -7), (two.seq, one.seq), (-7, two.seq))
            steps = tuple((PLACE, (OURS, new, OURS, old)) for old, new in places)
            yield Change("swapped", steps)


def _rewritten(log: Log, tenant: str, seq: int) -> Iterator[Change]:
    """Yield an entry that tells another story under a hash of its own; then the rest to match.

    Anybody can compute the hashes, so with all of them new only one that was noted before tells.
    """
    steps: list[tuple[str, Sequence[Any]]] = []
    before = log.entries.get((tenant, seq - 1))
    last = (before.seq, before.hash) if before else None
    while entry := log.entries.get((tenant, seq)):
        told = chained(entry if steps else replace(entry, target="another"), last)
        text = "UPDATE audit SET target = ?, hash = ? WHERE tenant = ? AND seq = ?"
        steps.append((text, (told.target, told.hash, tenant, seq)))
        last, seq = (seq, told.hash), seq + 1
    yield Change("rewritten", (steps[0],), cut_off=len(steps) == 1)
    yield Change("rewritten", tuple(steps), cut_off=True)


def _inserted(row: Row, size: int) -> Iterator[Change]:
    for seq in (-1, 0, size + 1, size + 2):
        yield Change("inserted", ((INSERT, (row.tenant, seq, *row[2:])),))
    later = [(PLACE, (row.tenant, n + 1, row.tenant, n)) for n in range(size, row.seq, -1)]
    between = (INSERT, (row.tenant, row.seq + 1, *row[2:]))
    yield Change("inserted", (*later, between))


def _respelled(row: Row, *, last: bool) -> Iterator[Change]:
    """Yield values that a lenient reader takes for those that were written."""
    for column in (*TEXTS, "hash"):
        kind = "TEXT" if column == "hash" else "BLOB"
        text = f"UPDATE audit SET {column} = CAST({column} AS {kind}) {WHERE}"  # noqa: S608  # the same
        yield Change("retyped", ((text, row[:2]),), cut_off=last and column == "tenant")
    for detail in (f" {row.detail}", "[" * 5000, row.detail.replace(":", ": ", 1)):
        if detail != row.detail:
            step = (f"UPDATE audit SET detail = ? {WHERE}", (detail, *row[:2]))  # noqa: S608  # the same
            yield Change("respelled", (step,))


async def test_a_moved_missing_or_added_row_is_found(
    written: Path, ground: Path, tally: Tally, rounds_of: Callable[[int], int]
) -> None:
    kinds = ("deleted", "swapped", "inserted", "cut", "moved", "retyped", "respelled",
             "rewritten")  # fmt: skip
    tally.expect(*kinds, "found by verify", "found by head")
    missed: list[Change] = []
    async with copied(written, ground) as log:
        every = list(changes(log))
        chosen = random.Random(3)
        for kind in kinds:
            some = [change for change in every if change.kind == kind]
            for change in chosen.sample(some, max(40, rounds_of(len(some)))):
                if not log.alter(*change.steps):
                    tally.fire("not taken by the primary key")
                    continue
                how = await log.finds()
                tally.fire(kind)
                tally.fire(f"found by {how}" if how else "missed")
                if how != "verify" and not (how == "head" and change.cut_off):
                    missed.append(change)
                log.restore()
                tally.round()
        assert await log.finds() == ""
    assert missed == [], f"{len(missed)} missed"


def touch(folder: Path, text: str) -> Any:
    """Do with a database what its server does not know of; return what the SQL gives."""
    db = apsw.Connection(f"{folder}/orchestrator.db")
    db.set_busy_timeout(5000)
    try:
        return db.execute(text).get
    finally:
        db.close()


@pytest.mark.parametrize(
    "change",
    ["actor = CAST(x'ff' AS TEXT), detail = '{'", "hash = CAST(x'ff' AS TEXT)", "hash = 'none'"],
)
def test_what_was_touched_stops_nobody(
    start_server: Callable[..., Running], tmp_path: Path, change: str
) -> None:
    root = token_hex(32)
    server = start_server(ADMIN_KEY=root)
    desk = Desk(server.url)
    for _ in range(2):
        desk.make(root, "admin_key", "admin")
    touch(tmp_path, f"UPDATE audit SET {change} WHERE seq = 2")  # noqa: S608  # the list above
    assert desk.ask(token_hex(32), "GET", "/v1/runs").status == 401
    desk.make(root, "admin_key", "viewer")
    count = "SELECT count(*) FROM audit"
    until(lambda: touch(tmp_path, count) == 4, "the wrong key is noted behind it")
    verified = desk.ask(root, "GET", "/v1/audit/verify").json()
    assert (verified["ok"], verified["entries"], verified["broken_at"]) == (False, 1, 2)
    assert server.stop() == 0, server.said()


# ------------------------------------------------------------ as people verify it


def verify(folder: Path, *words: str) -> tuple[int, dict[str, Any]]:
    """Run the command on the database in a folder; return its exit code and what it says of us."""
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", "audit", "verify", "--json", *words],
        cwd=folder, env={"PATH": "", "HOME": str(folder)}, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    said = [msgspec.json.decode(line) for line in done.stdout.splitlines()]
    return done.returncode, next(one for one in said if one["tenant"] == OURS)


def test_the_command_names_the_entry_and_sees_a_cut(written: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(written, folder)
    code, said = verify(folder)
    assert (code, said["ok"], said["entries"]) == (0, True, 62)
    head = said["head"]
    assert verify(folder, "--head", head)[0] == 0
    touch(folder, "DELETE FROM audit WHERE tenant = 'default' AND seq > 60")
    assert verify(folder)[0] == 0, "what is left is a chain"
    code, said = verify(folder, "--head", head)
    assert (code, said["ok"]) == (1, False)
    touch(folder, "UPDATE audit SET actor = 'locaL' WHERE tenant = 'default' AND seq = 17")
    code, said = verify(folder)
    assert (code, said["ok"], said["broken_at"]) == (1, False, 17)
    last_good = "SELECT lower(hex(hash)) FROM audit WHERE tenant = 'default' AND seq = 16"
    assert (said["entries"], said["head"]) == (16, touch(folder, last_good))


def test_the_command_looks_at_every_tenant(written: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(written, folder)
    touch(folder, "UPDATE audit SET target = 'another' WHERE tenant = 'other' AND seq = 3")
    code, said = verify(folder)
    assert (code, said["ok"]) == (1, True), "ours is whole, and theirs is not"
