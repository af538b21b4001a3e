"""The two stores side by side: the same work on the embedded one and on PostgreSQL.

*In two processes*: one appends 10,000 words a second, ten at a time, to a hundred runs, and another
one that has opened the same database reads ten of them. On PostgreSQL its bus wakes the reader, as
between two servers. SQLite has no bus between processes, for one server has it alone; there a
datagram wakes the reader, which costs less than any bus, and its store is opened `mode=ro`. The row
`told directly` is PostgreSQL with that datagram, so that the stores can be told from the bus.

*Through servers*: words go from an agent to a server and from there to a reader: of the one server
on the embedded store, of the one server on PostgreSQL, and of another server on PostgreSQL.

What is acknowledged is on the disk with PostgreSQL; on the embedded store that holds for states,
and for words only with `DURABILITY=full`, which is shown beside it. The bound is against both.
"""

import asyncio
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from http import HTTPStatus
from itertools import count
from statistics import median
from typing import Final

from bench.report import Row, Size
from bench.rig import Load, Rig, Running, cpu_of
from tests import postgres
from tests.processes import request

RUNS: Final = 100
READ: Final = 10
RATE: Final = 10_000
BATCH: Final = 10
WIDTH: Final = 50
WORDS: Final = 2500
MOST: Final = 4
SHARES: Final = ("p50", "p99")
EMBEDDED, DIRECTLY, POSTGRES = "embedded", "PostgreSQL, told directly", "PostgreSQL"
SYNCED = "embedded, DURABILITY=full"
HERE, ELSEWHERE = "PostgreSQL, one server", "PostgreSQL, another server"
Figures = Mapping[str, float]
_numbers = count()


def measure(rig: Rig, size: Size) -> Iterator[Row]:
    """Yield what the stores do with the same work, then what servers on them do."""
    with postgres.running(fsync=True) as server:
        yield from _alone(rig, server, size)
        yield from _served(rig, server, size)


def _alone(rig: Rig, server: postgres.Server, size: Size) -> Iterator[Row]:
    taken: dict[str, list[Figures]] = defaultdict(list)
    sides = [EMBEDDED, SYNCED, POSTGRES, DIRECTLY]
    for number in range(size.rounds):
        for side in sides[number % 4 :] + sides[: number % 4]:
            taken[side].append(_work(rig, server, side, size))
    for what in ("accept of a run", "append of ten words", "append → read in another process"):
        yield from _times(what, taken, bounded=what.startswith("append →"))
    for what, unit in (
        ("state changes, 50 at once", "1/s"),
        (f"of {RATE} words/s were taken", "1/s"),
        ("CPU per word, the writer's process", "µs"),
        ("CPU per word, the database's processes, its readers' too", "µs"),
    ):
        for side in (EMBEDDED, POSTGRES):
            if what in taken[side][0]:
                yield _row(f"{what}, {side}", _middle(taken[side], what), unit)


def _times(what: str, taken: Mapping[str, list[Figures]], *, bounded: bool) -> Iterator[Row]:
    """Yield p50 and p99 of every side, and the ratios of PostgreSQL to the embedded ones."""
    most = MOST if bounded else None
    for share in SHARES:
        for side in taken:
            yield _row(f"{what} {share}, {side}", _middle(taken[side], f"{what} {share}"), "ms")
    for share in SHARES:
        yield _ratio(what, share, taken, POSTGRES, SYNCED, most)
        yield _ratio(what, share, taken, POSTGRES, EMBEDDED, most)


def _work(rig: Rig, server: postgres.Server, side: str, size: Size) -> Figures:
    """Have two processes work on a new store and return what one round of it showed."""
    with ExitStack() as stack:
        writer, reader = (stack.enter_context(_process()) for _ in range(2))
        if side in {EMBEDDED, SYNCED}:
            url = f"file:{rig.folder()}/bench.db"
            writer.ask("open", url=url, durability="full" if side == SYNCED else "balanced")
            reader.ask("open", url=f"{url}?mode=ro")
        else:
            url = _database(server)
            for one in (writer, reader):
                one.ask("open", url=url, bus=side == POSTGRES)
        if side != POSTGRES:
            writer.ask("tell", port=reader.ask("listen"))
        return _figures(writer, reader, lambda: cpu_of(_pid(server)), side, size)


def _figures(
    writer: Load, reader: Load, database: Callable[[], float], side: str, size: Size
) -> Figures:
    accepted = writer.ask("accept", seconds=size.warm_s)
    runs = writer.ask("runs", number=RUNS)
    changes = writer.ask("change", width=WIDTH, seconds=size.warm_s)
    reader.ask("follow", run_ids=runs[:: RUNS // READ])
    writer.ask("pace", rate=RATE, batch=BATCH, seconds=size.warm_s)
    reader.ask("reset")
    before = database()
    paced = writer.ask("pace", rate=RATE, batch=BATCH, seconds=size.window_s)
    cpu = database() - before
    seen = reader.ask("seen")
    words = RATE * size.window_s
    if seen["events"] < 0.9 * words / READ:
        raise RuntimeError(f"{side}: {seen['events']:g} words were read of {words / READ:g}")
    figures = {
        "state changes, 50 at once": changes,
        f"of {RATE} words/s were taken": paced["rate"],
        "CPU per word, the writer's process": paced["cpu"],
    }
    if side in {POSTGRES, DIRECTLY}:
        figures["CPU per word, the database's processes, its readers' too"] = cpu / words * 1e6
    for share in SHARES:
        figures[f"accept of a run {share}"] = accepted[f"accept_{share}"]
        figures[f"append of ten words {share}"] = paced[f"append_{share}"]
        figures[f"append → read in another process {share}"] = seen[f"delay_{share}"]
    return figures


def _served(rig: Rig, server: postgres.Server, size: Size) -> Iterator[Row]:
    rig.callers = rig.load("bench.load.followers")
    taken: dict[str, list[Figures]] = defaultdict(list)
    sides = [EMBEDDED, SYNCED, HERE, ELSEWHERE]
    for number in range(size.rounds):
        for side in sides[number % 4 :] + sides[: number % 4]:
            taken[side].append(_serve(rig, server, side, size))
    what = f"agent → reader, {WORDS}/s"
    for share in SHARES:
        for side in sides:
            yield _row(f"{what} {share}, {side}", _middle(taken[side], f"{what} {share}"), "ms")
    for share in SHARES:
        yield _ratio(what, share, taken, HERE)
        yield _ratio(what, share, taken, ELSEWHERE, SYNCED)
        yield _ratio(what, share, taken, ELSEWHERE, most=MOST)
    for side in sides:
        yield _row(f"CPU per word, servers and database, {side}", _middle(taken[side], "cpu"), "µs")


def _serve(rig: Rig, server: postgres.Server, side: str, size: Size) -> Figures:
    """Have agents speak to one server and readers read at the same or at another one."""
    with ExitStack() as stack:
        env = {"DURABILITY": "full"} if side == SYNCED else {}
        on_postgres = side in {HERE, ELSEWHERE}
        if on_postgres:
            env = {"DATABASE_URL": _database(server), "SECRET_KEY": secrets.token_hex(32)}
        one = stack.enter_context(rig.server(None, **env))
        other = stack.enter_context(rig.server(None, **env)) if side == ELSEWHERE else one
        rig.callers.ask("target", port=other.port)
        rig.callers.ask("follow", run_ids=[_invoke(one, number) for number in range(RUNS)])
        rig.until_streaming("words", RUNS)
        pids = {one.process.pid, other.process.pid}
        if on_postgres:
            pids.add(_pid(server))
        figures = _window(rig, lambda: sum(map(cpu_of, pids)), size)
        rig.agents.ask("end", group="words")
        rig.callers.ask("close")
    return figures


def _window(rig: Rig, cpu: Callable[[], float], size: Size) -> Figures:
    lasts = size.warm_s + size.window_s + 0.5
    rig.agents.ask("pace", rates={"words": WORDS}, seconds=lasts)
    time.sleep(size.warm_s)
    rig.callers.ask("reset")
    before = cpu()
    time.sleep(size.window_s)
    seen, used = rig.callers.ask("seen"), cpu() - before
    rig.agents.ask("settle")
    if seen["events"] < 0.9 * WORDS * size.window_s:
        raise RuntimeError(f"{seen['events']:g} words came of {WORDS * size.window_s:g}")
    what = f"agent → reader, {WORDS}/s"
    figures = {f"{what} {share}": seen[f"delay_{share}"] for share in SHARES}
    return figures | {"cpu": used / seen["events"] * 1e6}


def _invoke(server: Running, number: int) -> str:
    message = {"role": "user", "content": "paced words 0"}
    body = {"session_id": f"s{number}", "agent_id": "load", "input_message": message}
    answer = request("POST", f"{server.url}/internal/invoke", body)
    if answer.status != HTTPStatus.OK:
        raise RuntimeError(f"the run was not accepted: {answer.body!r}")
    return str(answer.json()["run_id"])


@contextmanager
def _process() -> Iterator[Load]:
    load = Load("bench.load.stores")
    try:
        yield load
    finally:
        load.end()


def _database(server: postgres.Server) -> str:
    """Make a database and return its address."""
    name = f"bench_{next(_numbers)}"
    asyncio.run(postgres.ask(server.url(), f"CREATE DATABASE {name}"))
    return server.url(name)


def _pid(server: postgres.Server) -> int:
    """Return the process that all others of a server are children of."""
    return int((server.folder / "data" / "postmaster.pid").read_text().split()[0])


def _middle(samples: Sequence[Figures], what: str) -> float:
    return median(sample[what] for sample in samples)


def _ratio(
    what: str,
    share: str,
    taken: Mapping[str, list[Figures]],
    side: str,
    other: str = EMBEDDED,
    most: float | None = None,
) -> Row:
    name = f"{what} {share}"
    pairs = zip(taken[side], taken[other], strict=True)
    ratio = median(a[name] / b[name] for a, b in pairs)
    return Row("stores", f"{name}, {side} : {other}", ratio, most=most)


def _row(what: str, value: float, unit: str) -> Row:
    return Row("stores", what, value, unit)
