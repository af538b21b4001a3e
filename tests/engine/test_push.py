"""The ingress gets every event in order, whenever it is there, and never slows a run."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from orchestrator.core.errors import Unavailable
from orchestrator.core.frames import Delta, Done, Frame
from orchestrator.ports import AgentCall, PushAnswer

from .rig import running, until


class Ingress:
    """An ingress that can be away, hang, or take batches, and notes what it was given."""

    def __init__(self, *, batch: bool = False) -> None:
        self.batch = batch
        self.away = False
        self.hangs = False
        self.refused = 0
        self.requests = 0
        self.events: dict[str, list[dict[str, Any]]] = {}

    async def push(self, tenant: str, session_id: str, events: Sequence[bytes]) -> PushAnswer:
        """Take events, or not."""
        self.requests += 1
        if self.hangs:
            await asyncio.Event().wait()
        if self.away:
            self.refused += 1
            raise Unavailable("connection refused")
        assert self.batch or len(events) == 1
        for body in events:
            event = msgspec.json.decode(body)
            self.events.setdefault(event["run_id"], []).append(event)
        return PushAnswer(batch=self.batch)

    def complete(self, run_ids: list[str]) -> bool:
        """Return whether the end of each run has arrived."""
        ends = {"done", "error"}
        return all(self.events.get(r, [{}])[-1].get("type") in ends for r in run_ids)


async def talk(_: AgentCall) -> AsyncIterator[Sequence[Frame]]:
    for n in range(20):
        yield [Delta(str(n))]
        await asyncio.sleep(0)
    yield [Done(usage={"tokens": 20})]


async def test_events_arrive_live_in_order_and_under_their_live_names(
    tmp_path: Path,
) -> None:
    for batch in (False, True):
        ingress = Ingress(batch=batch)
        async with running(tmp_path / f"{batch}.db", talk, push=ingress) as rig:
            run = await rig.ended(await rig.invoke())
            await until(lambda: ingress.complete([run.run_id]))  # noqa: B023  # awaited within the iteration
        seen = ingress.events[run.run_id]
        assert [e["type"] for e in seen] == ["run_started", *["delta"] * 20, "done"]
        assert [e["text"] for e in seen if e["type"] == "delta"] == [str(n) for n in range(20)]
        assert [e["seq"] for e in seen] == sorted({e["seq"] for e in seen})
        assert seen[-1]["usage"] == {"tokens": 20}


async def test_an_absent_ingress_catches_up_when_it_returns(tmp_path: Path) -> None:
    ingress = Ingress()
    ingress.away = True
    async with running(tmp_path / "o.db", talk, push=ingress) as rig:
        runs = [await rig.ended(await rig.invoke(session_id=f"s{n}")) for n in range(5)]
        assert ingress.refused > 0
        assert ingress.requests < 20
        ingress.away = False
        await until(lambda: ingress.complete([run.run_id for run in runs]))
    for run in runs:
        assert [e["seq"] for e in ingress.events[run.run_id]] == [1, *range(4, 24), 25]


async def test_a_hung_ingress_holds_no_run_up(tmp_path: Path) -> None:
    ingress = Ingress()
    ingress.hangs = True
    async with running(tmp_path / "o.db", talk, push=ingress) as rig:
        await rig.ended(await rig.invoke(), timeout_s=5)
        assert ingress.requests > 0


async def test_what_was_delivered_before_a_restart_is_not_sent_for_ever(
    tmp_path: Path,
) -> None:
    ingress = Ingress()
    async with running(tmp_path / "o.db", talk, push=ingress) as rig:
        first = await rig.ended(await rig.invoke())
        await until(lambda: ingress.complete([first.run_id]))
    ingress.away = True
    async with running(tmp_path / "o.db", talk, push=ingress) as rig:
        second = await rig.ended(await rig.invoke())
    ingress.away = False
    async with running(tmp_path / "o.db", talk, push=ingress):
        await until(lambda: ingress.complete([second.run_id]))
    for run in (first, second):
        assert [e["seq"] for e in ingress.events[run.run_id]] == [1, *range(4, 24), 25]
