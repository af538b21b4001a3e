"""A disk that is full, broken or read-only: one clear word, and no promise is broken."""

import asyncio
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import apsw
import pytest

from orchestrator.core.errors import OrchestratorError, StorageFull, StoreFailure
from orchestrator.core.ops import Committed, Insert
from orchestrator.core.records import Run
from orchestrator.ports import Store
from orchestrator.stores.sqlite import open_store
from orchestrator.stores.sqlite.store import SQLiteStore
from orchestrator.testing import records as r
from orchestrator.testing.fake_world import FakeWorld

from ..processes import Running, request, spawn, until
from ..rigs import Tally
from .disk import CALLS, Disk, faulty_disk

KINDS = (*CALLS, "fdatasync")

KILLED = """
import asyncio, sys
from orchestrator.stores.sqlite import open_store
from orchestrator.stores.sqlite.store import SQLiteStore
from orchestrator.testing import records as r
from orchestrator.testing.fake_world import FakeWorld

async def main(path, number):
    store = await open_store(f"file:{path}", world=FakeWorld())
    made = r.run(number, f"s{number}")
    await store.commit(r.accept(made))
    print(made.run_id, 1, flush=True)
    while True:
        [outcome] = await store.commit(r.append(made, *r.deltas(3)))
        print(made.run_id, outcome.head, flush=True)

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


async def test_what_a_killed_process_acknowledged_is_there(
    tmp_path: Path, rounds_of: Callable[[int], int]
) -> None:
    acknowledged: dict[str, int] = {}
    for number in range(rounds_of(200)):
        log = tmp_path / f"{number}.log"
        command = [sys.executable, "-c", KILLED, f"{tmp_path}/o.db", str(number)]
        child = spawn(command, tmp_path, log, {})
        until(lambda: log.read_text().count("\n") > 20 + number % 7, "it commits")  # noqa: B023  # awaited within the iteration
        child.kill()
        child.wait()
        lines = [line.split() for line in log.read_text().splitlines() if line.count(" ") == 1]
        acknowledged[lines[-1][0]] = int(lines[-1][1])
        store = await open_store(f"file:{tmp_path}/o.db", world=FakeWorld())
        for run_id, head in acknowledged.items():
            found = await store.get(Run, run_id)
            assert found is not None
            assert found.head >= head
            seqs = [event.seq for event in await store.read(run_id, 0, 1_000_000)]
            assert seqs == list(range(1, found.head + 1))
        await store.close()
    assert len(acknowledged) > 1


async def _until_it_breaks(store: Store, made: Run, error: type[Exception]) -> int:
    """Commit until the store refuses with `error`; return the last head it acknowledged."""
    head = 1
    for _ in range(10_000):
        try:
            [outcome] = await store.commit(r.append(made, *r.deltas(50), r.started()))
        except error:
            return head
        assert isinstance(outcome, Committed)
        head = outcome.head
    raise AssertionError("it never broke")


async def test_a_full_disk_is_said_and_passes(tmp_path: Path) -> None:
    store = await open_store(f"file:{tmp_path}/o.db", world=FakeWorld())
    made = r.run(1)
    await store.commit(r.accept(made))
    assert store._writer is not None
    pages = int(store._writer._db.pragma("page_count"))
    store._writer._db.execute(f"PRAGMA max_page_count={pages + 4}")
    head = await _until_it_breaks(store, made, StorageFull)
    assert [e.seq for e in await store.read(made.run_id, 0)] == list(range(1, head + 1))
    assert store.stats()["disk_full_total"] >= 1
    store._writer._db.execute(f"PRAGMA max_page_count={pages + 10_000}")
    [outcome] = await store.commit(r.append(made, *r.deltas(50)))
    assert isinstance(outcome, Committed)
    assert outcome.head == head + 50
    await store.close()


async def test_below_the_watermark_only_new_runs_are_refused(tmp_path: Path) -> None:
    world = FakeWorld()
    first = await open_store(f"file:{tmp_path}/o.db", world=world)
    made = r.run(1)
    await first.commit(r.accept(made))
    await first.close()
    everything = shutil.disk_usage(tmp_path).total
    store = await open_store(f"file:{tmp_path}/o.db", world=world, watermark=everything + 1)
    with pytest.raises(StorageFull, match="MIN_FREE_DISK"):
        await store.commit(r.accept(r.run(2)))
    assert isinstance((await store.commit(r.append(made, *r.deltas(1))))[0], Committed)
    assert isinstance((await store.commit(r.end(made)))[0], Committed)
    await store.close()


class Day:
    """A short day of a store, opened twice; what it was promised in spite of the disk."""

    def __init__(self, path: Path, disk: Disk) -> None:
        self._path = path
        self._disk = disk
        self.heads: dict[str, int] = {}
        self.full = 0

    async def pass_(self) -> None:
        """Live the day to its end or to the first failure that does not pass."""
        for number in (1, 2):
            store = await open_store(
                f"file:{self._path}", world=FakeWorld(), sync=self._disk.fdatasync
            )
            try:
                await self._live(store, r.run(number, f"s{number}"))
            finally:
                with suppress(OrchestratorError):  # what cannot be tidied up, the next start does
                    await store.close()

    async def _live(self, store: SQLiteStore, made: Run) -> None:
        await self._do(lambda: store.commit(r.accept(made, Insert(r.message(made.created_at)))))
        for words in (40, 1, 300):
            await self._do(lambda: store.commit(r.append(made, *r.deltas(words))))  # noqa: B023  # awaited at once
        assert store._writing is not None
        await asyncio.to_thread(store._writing.checkpointer._copy)
        await self._do(lambda: store.commit(r.append(made, *r.deltas(2))))
        await self._do(lambda: store.commit(r.end(made)))
        await self._do(store.probe)
        await self._do(lambda: store.trim(0, r.AT + 1))

    async def _do(self, step: Callable[[], Awaitable[Any]]) -> None:
        """Take one step; a full disk passes, so it is tried once more."""
        try:
            done = await step()
        except StorageFull:
            self.full += 1
            done = await step()
        if isinstance(done, list):
            [outcome] = done
            assert isinstance(outcome, Committed)
            self.heads[f"run {outcome.key}"] = outcome.head

    async def kept(self) -> None:
        """Open what is left on a disk that is well again; all that was promised must be there."""
        store = await open_store(f"file:{self._path}", world=FakeWorld())
        runs = {f"run {run.key}": run for run in await store.find(Run)}
        for name, head in self.heads.items():
            run = runs[name]
            seqs = [event.seq for event in await store.read(run.run_id, 0, 10_000)]
            assert run.head >= head
            assert run.trimmed or seqs == list(range(1, run.head + 1))
        assert store._writer is not None
        assert store._writer._db.pragma("integrity_check") == "ok"
        await store.close()


# SQLite lives with some failures, such as that of a rollback; Python then speaks of an exception
# that nobody could take.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("error", [apsw.IOError, apsw.FullError])
@pytest.mark.parametrize("kind", KINDS)
async def test_the_nth_call_fails_for_every_n(
    ground: Path, tally: Tally, rounds_of: Callable[[int], int], kind: str, error: type[apsw.Error]
) -> None:
    fault = f"{kind} {'full' if error is apsw.FullError else 'fails'}"
    tally.expect(fault)
    step = 20 // rounds_of(20) // 5 or 1  # every fourth n where rounds are cut
    for n in itertools.count(1, step):
        with faulty_disk() as disk:
            disk.error = lambda: error("injected")
            disk.break_at(n, kind)
            day = Day(ground / f"{n}.db", disk)
            try:
                await day.pass_()
            except OrchestratorError:
                assert disk.fired, f"call {n}"
        await day.kept()
        tally.round()
        tally.fire(fault, disk.fired)
        if not disk.fired:
            return


@pytest.mark.parametrize("kind", ["write", "fdatasync"])
async def test_an_error_of_the_disk_ends_the_handle(
    tmp_path: Path, tally: Tally, kind: str
) -> None:
    tally.expect(kind)
    made = r.run(1)
    with faulty_disk() as disk:
        store = await open_store(f"file:{tmp_path}/o.db", world=FakeWorld(), sync=disk.fdatasync)
        await store.commit(r.accept(made))
        disk.break_at(3 if kind == "fdatasync" else 90, kind)
        head = await _until_it_breaks(store, made, StoreFailure)
        disk.mend()
        for step in (store.commit(r.append(made, *r.deltas(1))), store.probe()):
            with pytest.raises(StoreFailure):
                await step
        assert len(await store.read(made.run_id, 0, 10_000)) >= head, "reads go on"
        tally.fire(kind, disk.fired)
        await store.close()
    again = await open_store(f"file:{tmp_path}/o.db", world=FakeWorld())
    assert len(await again.read(made.run_id, 0, 10_000)) >= head > 1
    await again.close()


async def test_a_full_disk_below_the_database_is_not_fatal(tmp_path: Path) -> None:
    made = r.run(1)
    with faulty_disk() as disk:
        store = await open_store(f"file:{tmp_path}/o.db", world=FakeWorld())
        await store.commit(r.accept(made))
        disk.error = lambda: apsw.FullError("injected")
        disk.break_at(1, "write", for_ever=True)
        async with asyncio.TaskGroup() as tasks:
            op = r.append(made, *r.deltas(2))
            tries = [tasks.create_task(_try(store.commit(op))) for _ in range(10)]
        assert {task.result() for task in tries} == {"storage_full"}
        assert disk.fired
        disk.mend()
        assert isinstance((await store.commit(r.append(made, *r.deltas(2))))[0], Committed)
        assert [e.seq for e in await store.read(made.run_id, 0)] == [1, 2, 3]
        await store.close()


async def _try(commit: object) -> str:
    try:
        await commit  # type: ignore[misc]
    except StorageFull as error:
        return error.code
    return "taken"


# The interpreter and the package may live where only root goes, so it starts as root and has
# everything it needs in memory before it becomes nobody.
AS_NOBODY = """
import asyncio, functools, os, pwd, sys
from orchestrator.stores.sqlite import open_store, schema
from orchestrator.testing.fake_world import FakeWorld

async def main(path):
    store = await open_store(f"file:{path}", world=FakeWorld())
    await store.close()

schema.migrations = functools.cache(schema.migrations)
asyncio.run(main(sys.argv[1]))
nobody = pwd.getpwnam("nobody")
os.setgroups([])
os.setgid(nobody.pw_gid)
os.setuid(nobody.pw_uid)
assert os.geteuid() == nobody.pw_uid
print("became nobody", flush=True)
asyncio.run(main(sys.argv[2]))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become nobody")
@pytest.mark.parametrize("what", ["file", "folder"])
async def test_what_may_not_be_written_is_refused_in_a_sentence(tmp_path: Path, what: str) -> None:
    folder = Path("/var/tmp") / f"orchestrator-{os.getpid()}-{what}"  # noqa: S108  # nobody may go there
    folder.mkdir()
    folder.chmod(0o755)
    try:
        store = await open_store(f"file:{folder}/o.db", world=FakeWorld())
        await store.close()
        (folder / "o.db.lock").chmod(0o666)
        (folder / "o.db").chmod(0o644)
        if what == "file":
            folder.chmod(0o777)  # the file alone is the obstacle
        before = (folder / "o.db").read_bytes()
        done = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, tmp_path / "warm.db", folder / "o.db"],
            cwd=folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.stdout == "became nobody\n", done.stderr
        said = done.stderr.strip().splitlines()[-1]
        assert "DatabaseRefused" in said
        assert "cannot be" in said
        assert (folder / "o.db").read_bytes() == before
    finally:
        shutil.rmtree(folder)


def _health_if(server: Running, status: int) -> Any:
    answer = request("GET", f"{server.url}/health")
    return answer.json() if answer.status == status else None


def test_a_server_whose_disk_breaks_says_so_and_stops(
    start_server: Callable[..., Running], tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import errno, os\n"
        "def failing(descriptor, well=os.fdatasync):\n"
        "    if os.path.exists('break'):\n"
        "        open('fired', 'w').close()\n"
        "        raise OSError(errno.EIO, 'injected')\n"
        "    well(descriptor)\n"
        "os.fdatasync = failing\n"
    )
    server = start_server(PYTHONPATH=str(tmp_path))
    (tmp_path / "break").touch()
    sick = until(lambda: _health_if(server, 503), "it says so")
    assert "cannot be synced" in sick["problems"][0]
    until(lambda: server.process.poll() is not None, "it stops")
    assert (tmp_path / "fired").exists()
    assert server.process.returncode == 1
    assert "store_failed" in server.said()
    assert "Traceback" not in server.said()
    (tmp_path / "break").unlink()
    again = start_server()
    assert request("GET", f"{again.url}/health").status == 200
