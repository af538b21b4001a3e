"""A disk that is full, broken or read-only: one clear word, and no promise is broken."""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest

from orchestrator.core.errors import StorageFull, StoreFailure
from orchestrator.core.ops import Committed
from orchestrator.core.records import Run
from orchestrator.ports import Store
from orchestrator.stores.sqlite import open_store
from orchestrator.testing import records as r
from orchestrator.testing.fake_world import FakeWorld

from ..processes import Running, request, spawn, until
from .disk import faulty_disk

KILLED = """
import asyncio, sys
from orchestrator.stores.sqlite import open_store
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
            [outcome] = await store.commit(r.append(made, *r.deltas(50)))
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


@pytest.mark.parametrize("kind", ["write", "sync"])
async def test_an_error_of_the_disk_ends_the_handle(tmp_path: Path, kind: str) -> None:
    made = r.run(1)
    acknowledged = fired = 0
    breaks = range(1, 80, 9)
    for n in breaks:
        path = tmp_path / f"{n}.db"
        with faulty_disk() as disk:
            store = await open_store(f"file:{path}", world=FakeWorld())
            await store.commit(r.accept(made))
            disk.break_at(n, kind)
            head = await _until_it_breaks(store, made, StoreFailure)
            disk.mend()
            with pytest.raises(StoreFailure):
                await store.commit(r.append(made, *r.deltas(1)))
            with pytest.raises(StoreFailure):
                await store.probe()
            assert len(await store.read(made.run_id, 0, 10_000)) >= head, "reads go on"
            fired += disk.fired
            await store.close()
        again = await open_store(f"file:{path}", world=FakeWorld())
        seqs = [event.seq for event in await again.read(made.run_id, 0, 10_000)]
        assert seqs == list(range(1, len(seqs) + 1))
        assert len(seqs) >= head
        acknowledged += head
        await again.close()
    assert fired == len(breaks)
    assert acknowledged > len(breaks), "some broke later than at the first commit"


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
        "import apsw, os\n"
        "class File(apsw.VFSFile):\n"
        "    def __init__(self, name, flags):\n        super().__init__('unix', name, flags)\n"
        "    def xSync(self, flags):\n"
        "        if os.path.exists('break'):\n"
        "            open('fired', 'w').close()\n            raise apsw.IOError('injected')\n"
        "        super().xSync(flags)\n"
        "class VFS(apsw.VFS):\n"
        "    def __init__(self):\n        super().__init__('faulty', '', makedefault=True)\n"
        "    def xOpen(self, name, flags):\n        return File(name, flags)\n"
        "vfs = VFS()\n"
    )
    server = start_server(PYTHONPATH=str(tmp_path))
    (tmp_path / "break").touch()
    sick = until(lambda: _health_if(server, 503), "it says so")
    assert "cannot be written" in sick["problems"][0]
    until(lambda: server.process.poll() is not None, "it stops")
    assert (tmp_path / "fired").exists()
    assert server.process.returncode == 1
    assert "store_failed" in server.said()
    assert "Traceback" not in server.said()
    (tmp_path / "break").unlink()
    again = start_server()
    assert request("GET", f"{again.url}/health").status == 200
