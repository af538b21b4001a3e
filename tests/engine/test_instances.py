"""Instances of an agent: who is called, who waits, who is left out, and who comes back."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.errors import AgentFailure, AgentNotFound, NotFound, QueueFull
from orchestrator.core.events import Content
from orchestrator.core.frames import Done
from orchestrator.core.ops import Op, Put
from orchestrator.core.records import Agent, Instance, Retry, Run
from orchestrator.core.states import RunState
from orchestrator.engine import Registration
from orchestrator.engine.prober import Prober
from orchestrator.ports import AgentCall, ProbeAnswer, Where
from orchestrator.testing.engine_rig import Frames

from .rig import Rig, running, until
from .virtual import Virtual, play

MINUTE_S = 60
HOUR_S = 3600


class Instances:
    """What the instances of the test's agent do: answer, refuse, or hold on to a call."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.sessions: list[str] = []
        self.dead: set[str] = set()
        self.busy: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.free = asyncio.Event()
        self.free.set()

    async def script(self, call: AgentCall) -> Frames:
        """Play the instance that is called."""
        name = call.endpoint.removeprefix("http://")
        self.calls[name] += 1
        self.sessions.append(call.session_id)
        if name in self.dead:
            raise AgentFailure("agent_unavailable", f"{name} is dead")
        self.busy[name] += 1
        self.most[name] = max(self.most[name], self.busy[name])
        try:
            await self.free.wait()
            yield [Done(name)]
        finally:
            self.busy[name] -= 1


async def register(rig: Rig, *names: str, **fields: Any) -> None:
    """Register instances of the agent, each at an address of its name."""
    for name in names:
        wanted = Registration(
            agent_id="demo", name="demo", endpoint=f"http://{name}", instance_id=name, **fields
        )
        await rig.engine.agents.register(wanted)


@asynccontextmanager
async def three(path: Path, **fields: Any) -> AsyncIterator[tuple[Rig, Instances]]:
    """Run an engine with three instances of one agent."""
    instances = Instances()
    async with running(path / "o.db", instances.script) as rig:
        await rig.engine.agents.remove("demo")
        await register(rig, "a", "b", "c", **fields)
        yield rig, instances


async def answers(rig: Rig, count: int) -> list[Content | None]:
    """Return who answered so many runs, one after the other."""
    return [
        (await rig.ended(await rig.invoke(session_id=f"s{n}"))).final_message for n in range(count)
    ]


async def statuses(rig: Rig) -> dict[str, str]:
    """Return the status of each instance."""
    found = await rig.engine.agents.look("demo")
    return {one.instance.instance_id: one.status for one in found.instances}


def _queued(rig: Rig, count: int) -> bool:
    return rig.engine.stats()["agent_queued"] == count


async def test_equal_instances_take_turns(tmp_path: Path) -> None:
    async with three(tmp_path) as (rig, instances):
        await answers(rig, 9)
        assert instances.calls == {"a": 3, "b": 3, "c": 3}
        started = [e for e in await rig.log(await rig.invoke()) if "started" in e["type"]]
        assert all(e["payload"].get("instance_id") in {None, "a", "b", "c"} for e in started)


async def test_a_retry_goes_to_another_instance(tmp_path: Path) -> None:
    retry = Retry(max_attempts=3, backoff_ms=1)
    async with three(tmp_path, retry=retry) as (rig, instances):
        instances.dead |= {"a", "b"}
        for n in range(6):
            run = await rig.ended(await rig.invoke(session_id=f"s{n}"))
            assert run.final_message == "c"
            log = await rig.log(run)
            asked = [e["payload"]["instance_id"] for e in log if "invoke_started" in e["type"]]
            assert len(set(asked)) == len(asked)
        assert rig.engine.stats()["agent_retries_total"] > 0


async def test_a_run_whose_server_was_lost_goes_on_at_another_instance(tmp_path: Path) -> None:
    async with three(tmp_path, on_lost="retry") as (rig, instances):
        instances.free.clear()
        lost = [await rig.invoke(session_id=f"s{n}") for n in range(3)]
        await until(lambda: sum(instances.busy.values()) == 3)
        await rig.die()
    instances = Instances()
    async with running(tmp_path / "o.db", instances.script, known=True) as rig:
        for run in lost:
            log = await rig.log(await rig.ended(run))
            asked = [e["payload"]["instance_id"] for e in log if "invoke_started" in e["type"]]
            assert len(asked) == len(set(asked)) == 2
        assert rig.engine.stats()["agent_retries_total"] == 3


async def test_three_failures_in_a_row_eject_and_the_last_one_stays(tmp_path: Path) -> None:
    async with three(tmp_path, retry=Retry(max_attempts=3, backoff_ms=1)) as (rig, instances):
        instances.dead |= {"a", "b"}
        await answers(rig, 12)
        assert instances.calls["a"] == instances.calls["b"] == 3
        found = {
            s.instance.instance_id: s for s in (await rig.engine.agents.look("demo")).instances
        }
        assert found["a"].status == "unhealthy"
        assert found["a"].ejected_until is not None
        assert found["a"].last_error == "agent_unavailable: a is dead"
        instances.dead.add("c")
        run = await rig.ended(await rig.invoke())
        assert run.error_code == "agent_unavailable"
        await answers(rig, 3)
        assert instances.calls["c"] > 10  # it is the last one, and is called all the same
        assert (await rig.engine.agents.look("demo")).instances[2].ejected_until is None
        assert rig.engine.stats()["agent_ejections_total"] == 2
        assert rig.engine.stats()["instances_unhealthy"] == 2


async def test_a_run_waits_in_line_for_a_free_instance(tmp_path: Path) -> None:
    async with three(tmp_path, max_concurrency=1) as (rig, instances):
        instances.free.clear()
        runs = [await rig.invoke(session_id=f"s{n}") for n in range(12)]
        await until(lambda: rig.engine.stats()["agent_queued"] == 9)
        instances.free.set()
        ended = [await rig.ended(run) for run in runs]
        assert all(run.status is RunState.DONE for run in ended)
        assert set(instances.most.values()) == {1}
        assert instances.sessions == [f"s{n}" for n in range(12)]
        assert rig.engine.stats()["agent_queue_waits_total"] == 9


async def test_a_full_line_refuses_the_next(tmp_path: Path) -> None:
    async with three(tmp_path, max_concurrency=1) as (rig, instances):
        rig.engine._instances.queue_max = 2  # a thousand runs say no more
        instances.free.clear()
        runs = [await rig.invoke(session_id=f"s{n}") for n in range(3)]
        await until(lambda: sum(instances.busy.values()) == 3)
        for n in range(2):
            runs.append(await rig.invoke(session_id=f"t{n}"))
            await until(partial(_queued, rig, n + 1))
        with pytest.raises(QueueFull, match="wait for a free instance of agent demo") as refused:
            await rig.invoke(session_id="u")
        assert refused.value.details["retry_after"] == 1
        assert await rig.engine.sessions.messages("u") is not None
        assert await rig.store.count(Run) == 5
        instances.free.set()
        for run in runs:
            assert (await rig.ended(run)).status is RunState.DONE


async def test_who_waits_can_be_cancelled_and_leaves_no_hold(tmp_path: Path) -> None:
    async with three(tmp_path, max_concurrency=1) as (rig, instances):
        instances.free.clear()
        runs = [await rig.invoke(session_id=f"s{n}") for n in range(6)]
        await until(lambda: rig.engine.stats()["agent_queued"] == 3)
        for run in runs:
            await rig.engine.runs.cancel(run.run_id, "enough")
        await until(lambda: rig.engine.in_flight == 0)
        instances.free.set()
        await answers(rig, 3)
        assert {s.in_flight for s in (await rig.engine.agents.look("demo")).instances} == {0}


async def test_a_draining_instance_gets_nothing_new_and_finishes_what_it_has(
    tmp_path: Path,
) -> None:
    async with three(tmp_path) as (rig, instances):
        instances.free.clear()
        runs = [await rig.invoke(session_id=f"s{n}") for n in range(3)]
        await until(lambda: sum(instances.busy.values()) == 3)
        await rig.engine.agents.drain("demo", instance_id="b")
        await rig.engine.agents.drain("demo", instance_id="b")
        instances.free.set()
        assert {(await rig.ended(run)).final_message for run in runs} == {"a", "b", "c"}
        assert set(await answers(rig, 6)) == {"a", "c"}
        assert (await statuses(rig))["b"] == "draining"
        assert (await rig.engine.agents.get("demo")).status == "healthy"
        await register(rig, "b")
        assert "b" in await answers(rig, 6)


async def test_removing_instances_ends_with_the_agent(tmp_path: Path) -> None:
    async with three(tmp_path) as (rig, _):
        with pytest.raises(NotFound, match="no instance 'x'"):
            await rig.engine.agents.remove("demo", instance_id="x")
        await rig.engine.agents.remove("demo", instance_id="c")
        assert set(await answers(rig, 4)) == {"a", "b"}
        assert (await rig.engine.agents.get("demo")).instance_id == "b"
        await rig.engine.agents.remove("demo", instance_id="a")
        await rig.engine.agents.remove("demo", instance_id="b")
        with pytest.raises(AgentNotFound):
            await rig.engine.agents.get("demo")
        assert await rig.store.count(Instance) == 0


async def test_heartbeats_are_written_together_and_revive_nobody(tmp_path: Path) -> None:
    async with three(tmp_path) as (rig, _):
        agents = rig.engine.agents
        with pytest.raises(NotFound, match="several instances"):
            await agents.heartbeat("demo")
        with pytest.raises(NotFound, match="no instance 'x'"):
            await agents.heartbeat("demo", instance_id="x")
        for name in ("a", "b"):
            await agents.heartbeat("demo", instance_id=name)
        await agents.remove("demo", instance_id="b")
        where: Where = ("last_heartbeat", "!=", None)
        written: list[Instance] = []
        for _ in range(100):
            if written := await rig.store.find(Instance, where):
                break
            await asyncio.sleep(0.05)
        assert [one.instance_id for one in written] == ["a"]
        assert set(await statuses(rig)) == {"a", "c"}


async def test_a_server_of_the_version_before_is_understood(tmp_path: Path) -> None:
    async with three(tmp_path) as (rig, _):
        await rig.engine.agents.remove("demo")
        old = Agent(
            tenant="default", agent_id="demo", name="d", endpoint="http://old", created_at=1,
            updated_at=rig.store.now(),
        )  # fmt: skip
        await rig.store.commit(Op(writes=(Put(old),)))
        assert await answers(rig, 2) == ["old", "old"]
        assert await statuses(rig) == {"default": "healthy"}
        await rig.engine.agents.heartbeat("demo")
        await register(rig, "new")
        assert set(await answers(rig, 4)) == {"old", "new"} or await answers(rig, 2) == ["new"] * 2


def _told(rig: Rig, name: str) -> Registration:
    del rig
    return Registration(agent_id="demo", name="demo", endpoint=f"http://{name}", instance_id=name)


def test_silence_makes_an_instance_unhealthy_and_an_hour_of_it_removes_it() -> None:
    async def story(virtual: Virtual) -> None:
        instances = Instances()
        async with virtual.running(instances.script) as rig:
            agents = rig.engine.agents
            await agents.remove("demo") if await rig.store.count(Agent) else None
            for name in ("a", "b", "c"):
                await agents.register(_told(rig, name))
            for name in ("a", "b"):
                await agents.heartbeat("demo", instance_id=name)
            assert await statuses(rig) == {"a": "healthy", "b": "healthy", "c": "unknown"}
            await asyncio.sleep(80)
            await agents.heartbeat("demo", instance_id="b")
            await asyncio.sleep(20)
            assert await statuses(rig) == {"a": "unhealthy", "b": "healthy", "c": "unknown"}
            assert set(await answers(rig, 6)) == {"b", "c"}
            await agents.remove("demo", instance_id="c")
            await asyncio.sleep(HOUR_S)
            assert await statuses(rig) == {"b": "unhealthy"}  # the other is removed: the last stays
            await asyncio.sleep(3 * HOUR_S)
            assert await answers(rig, 1) == ["b"]

    play(story)


def test_an_ejected_instance_comes_back_by_one_trial_at_a_time() -> None:
    async def story(virtual: Virtual) -> None:
        instances = Instances()
        async with virtual.running(instances.script) as rig:
            for name in ("a", "b"):
                await rig.engine.agents.register(_told(rig, name))
            instances.dead.add("a")
            for n in range(8):
                await rig.ended(await rig.invoke(session_id=f"e{n}"))
            assert instances.calls["a"] == 3
            await asyncio.sleep(7)
            for n in range(4):
                await rig.ended(await rig.invoke(session_id=f"f{n}"))
            assert instances.calls["a"] == 4  # the trial failed, and the time doubled
            await asyncio.sleep(7)
            await answers(rig, 4)
            assert instances.calls["a"] == 4
            await asyncio.sleep(7)
            instances.dead.clear()
            instances.free.clear()
            runs = [await rig.invoke(session_id=f"g{n}") for n in range(8)]
            await asyncio.sleep(1)
            assert instances.most["a"] == 1
            instances.free.set()
            for run in runs:
                await rig.ended(run)
            assert instances.calls["a"] == 5
            assert await statuses(rig) == {"a": "healthy", "b": "healthy"}
            assert rig.engine.stats()["agent_trials_total"] == 2
            assert rig.engine.stats()["agent_ejections_total"] == 2

    play(story)


class Probe:
    """Answers for the health of instances, and counts."""

    def __init__(self) -> None:
        self.says: dict[str, str] = {}
        self.asked: Counter[str] = Counter()
        self.open = self.most = 0

    async def probe(
        self, endpoint: str, credential: str | None, *, operator: bool = True
    ) -> ProbeAnswer:
        """Answer after a moment."""
        del credential, operator
        name = endpoint.removeprefix("http://")
        self.asked[name] += 1
        self.open += 1
        self.most = max(self.most, self.open)
        await asyncio.sleep(0.1)
        self.open -= 1
        return ProbeAnswer(self.says.get(name, "healthy"))


def test_health_is_asked_for_where_no_heartbeats_come() -> None:
    async def story(virtual: Virtual) -> None:
        instances, probe = Instances(), Probe()
        async with virtual.running(instances.script) as rig, asyncio.TaskGroup() as tasks:
            engine = rig.engine
            prober = Prober(
                virtual.store,  # type: ignore[arg-type]
                virtual.world,
                engine._instances,  # the rig's engine has no probe
                probe,
                lambda _: None,
            )
            asking = tasks.create_task(prober.run())
            for name in ("a", "b", "c", "d"):
                await engine.agents.register(_told(rig, name))
            await engine.agents.heartbeat("demo", instance_id="d")
            probe.says |= {"b": "unhealthy", "c": "unknown"}
            await asyncio.sleep(80)
            await engine.agents.heartbeat("demo", instance_id="d")
            assert await statuses(rig) == {
                "a": "healthy", "b": "unhealthy", "c": "unknown", "d": "healthy",
            }  # fmt: skip
            assert set(await answers(rig, 9)) == {"a", "c", "d"}  # 404 on /health is routable
            assert 4 <= probe.asked["a"] <= 6
            assert probe.asked["c"] == 1
            assert probe.asked["d"] == 0
            probe.says["b"] = "healthy"
            await asyncio.sleep(30)
            assert "b" in await answers(rig, 8)
            for n in range(200):
                await engine.agents.register(_told(rig, f"m{n}"))
            await asyncio.sleep(60)
            assert min(probe.asked[f"m{n}"] for n in range(200)) >= 1
            assert probe.most <= 64
            assert (await engine.health()).healthy
            asking.cancel()

    play(story)
