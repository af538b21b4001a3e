"""Every released schema opens for ever: what came out of it then comes out of it now."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from orchestrator.buses.local import LocalBus
from orchestrator.core.frames import Delta, Done
from orchestrator.core.records import Run
from orchestrator.core.states import OPEN, PAUSED, RunState
from orchestrator.ports import AgentCall, Bus, Store
from orchestrator.stores.postgres import open_store as open_postgres
from orchestrator.stores.postgres import schema as postgres_schema
from orchestrator.stores.sqlite import open_store as open_sqlite
from orchestrator.stores.sqlite import schema as sqlite_schema
from orchestrator.stores.sqlite.location import Location
from orchestrator.testing import engine_rig
from orchestrator.testing.engine_rig import Frames, Place, Rig
from orchestrator.world import RealWorld

from .. import postgres
from ..golden import Golden, Outcome, goldens, outcome_of, restore

SIZE_MAX = 100_000


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Hand out the address of a server."""
    with postgres.address() as url:
        yield url


@pytest.fixture(params=goldens(), ids=lambda golden: golden.packed.name)
def golden(request: pytest.FixtureRequest) -> Golden:
    """Hand out each of the past's databases."""
    found: Golden = request.param
    return found


@pytest.fixture
async def place(
    golden: Golden, request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[Place]:
    """Hand out what opens a golden database, as any start does."""
    if golden.store == "sqlite":
        (tmp_path / "o.db").write_bytes(golden.unpacked())
        yield at(f"file:{tmp_path}/o.db")
        return
    server = request.getfixturevalue("server")
    async with postgres.database(server) as url:
        await restore(url, golden.unpacked())
        yield at(url)


def at(url: str) -> Place:
    """Return the place of a database."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[tuple[Store, Bus]]:
        open_store = open_sqlite if url.startswith("file:") else open_postgres
        store: Store = await open_store(url, world=RealWorld())
        try:
            yield store, LocalBus()
        finally:
            await store.close()

    return opened


def test_every_schema_has_its_golden_database() -> None:
    steps = {"sqlite": sqlite_schema.migrations(), "postgres": postgres_schema.migrations()}
    wanted = [Golden(store, step.number) for store in steps for step in steps[store]]
    assert goldens() == sorted(wanted), "run: python -m tests.golden"


def test_it_is_small_and_has_something_of_everything(golden: Golden) -> None:
    assert golden.packed.stat().st_size < SIZE_MAX
    expected = golden.expected
    assert {run.status for run in expected.runs.values()} == set(RunState)
    assert any(run.trimmed for run in expected.runs.values())
    assert len(expected.sessions) > 5
    first = golden == Golden("sqlite", 1)
    assert first or (expected.audit > 5 and expected.keys > 3)


def test_it_is_never_written_again(golden: Golden) -> None:
    before = golden.packed.read_bytes()
    with pytest.raises(FileExistsError):
        golden.keep(b"", golden.expected)
    assert golden.packed.read_bytes() == before


async def test_all_that_was_told_comes_out_byte_for_byte(
    golden: Golden, place: Place, tmp_path: Path
) -> None:
    async with place() as (store, _):
        assert await outcome_of(store) == golden.expected
    newest = sqlite_schema.migrations()[-1].number
    backup = tmp_path / f"o.db.before-{newest}"
    if golden.store == "sqlite" and golden.schema < newest:
        assert sqlite_schema.inspect(Location(str(backup))).number == golden.schema
    else:
        assert not backup.exists()


async def say(call: AgentCall) -> Frames:
    """Answer with the attempt, so that each can be told from the others."""
    yield [Delta(f"attempt {call.attempt}"), Done()]


async def test_open_runs_go_on_or_end_as_promised(golden: Golden, place: Place) -> None:
    expected = golden.expected
    async with engine_rig.running(place, say, known=True) as rig:
        runs = {run.run_id: run for run in await rig.store.find(Run, limit=1000)}
        open_then = [runs[id_] for id_, run in expected.runs.items() if run.status in OPEN]
        for run in open_then:
            await _ends(rig, run, RunState(expected.runs[run.run_id].status))
        for session in expected.sessions:
            run = await rig.invoke("more", session_id=session)
            assert (await rig.ended(run)).status is RunState.DONE
        after = await outcome_of(rig.store)
    _only_added(expected, after)


async def _ends(rig: Rig, run: Run, then: RunState) -> None:
    """Demand of a run that was open what is promised of its state then."""
    if then in PAUSED:
        assert (await rig.stored(run)).status is then
        await rig.engine.runs.cancel(run.run_id, "enough")
        assert (await rig.ended(run)).status is RunState.CANCELLED
        return
    ended = await rig.ended(run)
    types = await rig.types(run)
    if then is RunState.CREATED:
        assert (ended.status, ended.final_message) == (RunState.DONE, "attempt 1")
    elif run.parent_run_id is not None:  # it ends with its parent, or goes on before that
        assert types[-1] in {"run_cancelled", "run_done"}
    elif run.agent_id == "keeper":
        assert (ended.status, ended.final_message) == (RunState.DONE, "attempt 2")
        assert "agent_invoke_retrying" in types
    else:
        assert (ended.status, ended.error_code) == (RunState.FAILED, "orchestrator_restarted")


def _only_added(before: Outcome, after: Outcome) -> None:
    """Demand that runs which had ended are as they were, and no head went back."""
    for run_id, told in before.runs.items():
        if told.status in OPEN:
            assert after.runs[run_id].head > told.head
        else:
            assert after.runs[run_id] == told
    assert len(after.runs) == len(before.runs) + len(before.sessions)
    assert after.keys == before.keys
