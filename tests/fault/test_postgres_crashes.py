"""PostgreSQL that crashes and comes back: nothing is lost or doubled, all is well within 5 s."""

import asyncio
import secrets
import signal
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.errors import Unavailable
from orchestrator.core.ops import Op, Put
from orchestrator.core.records import Agent, Run
from orchestrator.stores.postgres import open_store
from orchestrator.testing import records as r
from orchestrator.testing.history import violations
from orchestrator.world import RealWorld

from .. import postgres
from ..processes import Answer, request, start_server, until
from ..rigs import Tally
from . import load
from .speakers import Speaker, accepted, grown

WELL_S = 5.0
"""Seconds from the moment that the database takes connections again."""


async def test_a_server_that_crashes_and_comes_back_loses_and_doubles_nothing(
    database_server: postgres.Server, rounds_of: Callable[[int], int], tally: Tally
) -> None:
    tally.expect("crashed", "away")
    async with postgres.database(database_server.url()) as url:
        store = await open_store(url, world=RealWorld())
        speakers = [Speaker(store, made) for made in await accepted(store, 4)]
        ended = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            for speaker in speakers:
                tasks.create_task(speaker.talk(ended))
            for _ in range(max(2, rounds_of(20))):
                await grown(speakers, 50)
                database_server.stop(signal.SIGQUIT)
                tally.fire("crashed")
                with pytest.raises(Unavailable):
                    await store.get(Run, speakers[0].run.run_id)
                with pytest.raises(Unavailable):
                    await store.commit(Op(writes=(Put(r.agent("never")),)))
                tally.fire("away")
                await asyncio.to_thread(database_server.start)
                tally.most("s until it commits", await well(grown(speakers, 1)))
                tally.round()
            ended.set()
        assert await store.get(Agent, "default", "never") is None
        for speaker in speakers:
            assert await speaker.heard(store) == speaker.taken
        await store.close()


async def well(sign: Coroutine[Any, Any, object]) -> float:
    """Return how many seconds it takes until there is a sign that all is well; fail past 5."""
    began = asyncio.get_running_loop().time()
    async with asyncio.timeout(WELL_S):
        await sign
    return asyncio.get_running_loop().time() - began


class Served:
    """A server process on a database that goes away, with an agent, and readers of its runs."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.seen: dict[str, list[bytes]] = {}

    async def begin(self, tasks: asyncio.TaskGroup, count: int) -> list[list[bytes]]:
        """Invoke runs, each with a reader that resumes; return what the readers will have seen."""
        lines = []
        for _ in range(count):
            run_id = await load.invoke(self.url, f"s{len(self.seen)}")
            self.seen[run_id] = []
            lines.append(self.seen[run_id])
            tasks.create_task(load.whole(self.url, run_id, self.seen[run_id]))
        return lines

    def invoke(self) -> Answer:
        """Ask for one more run."""
        message = {"role": "user", "content": "now"}
        body = {"agent_id": "load", "input_message": message}
        return request("POST", f"{self.url}/v1/runs", body)

    def health(self) -> Answer:
        """Ask how it is."""
        return request("GET", f"{self.url}/health")


async def test_a_server_without_its_database_says_so_and_goes_on_with_it(
    database_server: postgres.Server, tmp_path: Path, rounds_of: Callable[[int], int], tally: Tally
) -> None:
    tally.expect("served without", "runs in flight")
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(postgres.database(database_server.url()))
        agent = await stack.enter_async_context(load.Agent(deltas=600, pause_s=0.01).serving())
        settings = {"DATABASE_URL": url, "SECRET_KEY": secrets.token_hex(32)}
        running = await asyncio.to_thread(start_server, tmp_path, **settings)
        stack.callback(running.kill)
        await load.register(running.url, agent, on_lost="retry")
        served = Served(running.url)
        for _ in range(rounds_of(20)):
            async with asyncio.TaskGroup() as tasks:
                lines = await served.begin(tasks, 4)
                while min(map(len, lines)) < 20:
                    await asyncio.sleep(0.01)
                database_server.stop(signal.SIGQUIT)
                await asyncio.to_thread(refused, served)
                tally.fire("served without")
                tally.fire("runs in flight", sum(not over(line) for line in lines))
                await asyncio.to_thread(database_server.start)
                tally.most("s until it serves", await well(asyncio.to_thread(taken, served)))
            tally.round()
        for run_id, seen in served.seen.items():
            replay: list[bytes] = []
            await load.whole(running.url, run_id, replay)
            assert violations(replay, seen) == [], run_id
            assert over(replay)
        assert await asyncio.to_thread(running.stop) == 0, running.said()


def refused(served: Served) -> None:
    """Check what is said while the database is away: to come again, and that the process lives."""
    answer = served.invoke()
    assert (answer.status, answer.json()["code"]) == (503, "unavailable"), answer.body
    assert int(answer.headers["retry-after"]) >= 1
    sick = until(lambda: (said := served.health()).status == 503 and said, "/health says so")
    assert "cannot be reached" in sick.json()["problems"][0]
    assert request("GET", f"{served.url}/health/live").status == 200


def taken(served: Served) -> None:
    """Wait until a run is accepted; then the server is well again, which it says each second."""
    until(lambda: served.invoke().status == 201, "a run is accepted")
    until(lambda: served.health().status == 200, "/health says so")


def over(seen: list[bytes]) -> bool:
    return bool(seen) and b'"type":"run_done"' in seen[-1]
