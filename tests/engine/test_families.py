"""A parent is told of each child once, also when whoever made the child dies in between."""

import asyncio
from pathlib import Path

import pytest

from orchestrator.buses.local import LocalBus
from orchestrator.core.errors import RunNotActive
from orchestrator.core.project import RUN_MAX
from orchestrator.core.records import Run, Timer
from orchestrator.core.states import RunState
from orchestrator.engine import Accepted, Invoke
from orchestrator.engine.family import CALLED, Family
from orchestrator.engine.ledger import Ledger
from orchestrator.world import RealWorld

from .rig import Rig, hang, running, until

TOLD = "agent_called_child"


async def half_made(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> tuple[Run, Run]:
    """Return a parent and a child of which it was not told, as a death in between leaves them."""

    async def nothing(*_: object) -> None:
        return

    parent = await rig.invoke("parent")
    await until(lambda: rig.agent.open_now == 1)
    with monkeypatch.context() as patch:
        patch.setattr(Family, "tell", nothing)
        child = await rig.child(parent)
    assert TOLD not in await rig.types(parent)
    [timer] = [one for one in await rig.store.find(Timer) if one.kind.startswith(CALLED)]
    assert timer.due_at > child.created_at
    return parent, child


async def test_a_parent_is_told_late_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path / "o.db", hang) as rig:
        parent, child = await half_made(rig, monkeypatch)
        timer = Timer(run_id=parent.run_id, kind=f"{CALLED}{child.run_id}", due_at=0)
        family = Family(Ledger(rig.store, LocalBus(), RealWorld()))
        for _ in range(2):
            await family.tell_late(timer)
        assert (await rig.types(parent)).count(TOLD) == 1
        assert (await rig.stored(child)).status is not RunState.CANCELLED


async def test_a_child_whose_parent_has_ended_before_it_was_told_ends_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path / "o.db", hang) as rig:
        parent, child = await half_made(rig, monkeypatch)
        stale = await rig.stored(parent)
        await rig.engine.runs.cancel(parent.run_id, "enough")
        with pytest.raises(RunNotActive):
            await Family(Ledger(rig.store, LocalBus(), RealWorld())).tell(stale, child)
        assert (await rig.ended(child)).status is RunState.CANCELLED
        assert (await rig.types(parent))[-1] == "run_cancelled"
        assert await rig.store.find(Timer) == []


async def test_upkeep_tells_what_a_dead_server_did_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.engine.family._TELL_MS", 1)
    async with running(tmp_path / "o.db", hang) as rig:
        parent, _ = await half_made(rig, monkeypatch)
        await rig.once(parent, lambda run: run.version > parent.version + 1)
        types = await rig.types(parent)
        assert types.count(TOLD) == 1


async def test_a_wide_tree_ends_in_few_commits(tmp_path: Path) -> None:
    async with running(tmp_path / "o.db", hang) as rig:
        await rig.register("below")
        parent = await rig.invoke("parent")
        await until(lambda: rig.agent.open_now == 1)
        asked = {"agent_id": "below", "parent_run_id": parent.run_id}
        children = [await rig.invoke("child", **asked) for _ in range(50)]
        await until(lambda: rig.agent.open_now == 51)
        before = rig.engine.stats()["store_commits_total"]
        await rig.engine.runs.cancel(parent.run_id, "enough")
        for child in children:
            assert (await rig.stored(child)).error_message == "parent run cancelled"
        assert rig.engine.stats()["store_commits_total"] - before < 10


async def test_children_are_found_that_a_crash_left_behind_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.engine.upkeep._AT_ONCE", 1)

    async def nothing(*_: object) -> int:
        return 0

    async with running(tmp_path / "o.db", hang) as rig:
        living, lost = await rig.invoke("living"), await rig.invoke("lost", session_id="s2")
        await until(lambda: rig.agent.open_now == 2)
        spared, orphan = await rig.child(living), await rig.child(lost)
        with monkeypatch.context() as patch:
            patch.setattr(Ledger, "end_children", nothing)
            await rig.engine.runs.cancel(lost.run_id, "and the server dies")
        assert (await rig.stored(orphan)).status is not RunState.CANCELLED
        await rig.engine._upkeep.tick(sweep=True)
        assert (await rig.stored(orphan)).status is RunState.CANCELLED
        assert (await rig.stored(spared)).status is not RunState.CANCELLED


async def test_who_calls_while_a_child_is_given_up_gets_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path / "o.db", hang) as rig:
        await rig.register("below")
        parent = await rig.invoke("parent")
        await until(lambda: rig.agent.open_now == 1)
        asked = {"agent_id": "below", "parent_run_id": parent.run_id, "request_id": "k"}
        first = await rig.invoke("child", **asked)
        giving_up, found, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()
        get, take = rig.engine.runs.get, rig.engine._intake.take

        async def noted(request: Invoke) -> Accepted:
            accepted = await take(request)
            found.set()
            return accepted

        async def slowly(run_id: str, tenant: str) -> Run:
            giving_up.set()
            await go_on.wait()
            return await get(run_id, tenant)

        monkeypatch.setattr(rig.engine.runs, "get", slowly)
        monkeypatch.setattr(rig.engine._intake, "take", noted)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(rig.engine.runs.hung_up(first.run_id))
            await giving_up.wait()
            second = tasks.create_task(rig.invoke("child", **asked))
            await found.wait()
            go_on.set()
        assert second.result().run_id != first.run_id
        assert (await rig.stored(first)).status is RunState.CANCELLED


async def test_the_topmost_run_is_the_one_that_was_too_late(tmp_path: Path) -> None:
    async with running(tmp_path / "o.db", hang) as rig:
        parent = await rig.invoke("parent")
        await until(lambda: rig.agent.open_now == 1)
        child = await rig.child(parent)
        assert child.deadline_at == parent.deadline_at
        timer = Timer(run_id=child.run_id, kind=RUN_MAX, due_at=child.deadline_at)
        await rig.engine._upkeep._fire(timer)
        assert (await rig.stored(parent)).error_code == "run_timeout"
        ended = await rig.stored(child)
        assert (ended.status, ended.error_message) == (RunState.CANCELLED, "parent run failed")
        assert await rig.store.find(Timer) == []
