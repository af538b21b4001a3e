"""Trees of agents, three levels deep, that end at any moment: all of them, at once, for good."""

import asyncio
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orchestrator.core.events import TERMINAL
from orchestrator.testing.fake_agent import FakeAgent
from orchestrator.testing.history import violations

from ..processes import first_line, until
from ..rigs import Tally
from ..stores import BOTH, Kept
from .families import Relative
from .load import call, whole
from .nursery import nursery

pytestmark = BOTH
SOON_S = 1.0
NOISE_S = 2.0
"""What a busy machine may add in a quick run."""
ROUNDS = 200
PARENT = """
import asyncio, sys
from pathlib import Path
from orchestrator.testing.fake_agent import FakeAgent
from tests.fault.families import Relative

async def main():
    async with FakeAgent(Relative("top", ["middle", "middle-two"])) as agent:
        print(agent.url, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


class Tree:
    """A server, its agents, and what they saw."""

    def __init__(self, url: str, agents: list[Relative], soon_s: float, tally: Tally) -> None:
        self.url = url
        self.agents = agents
        self._soon_s = soon_s
        self._tally = tally
        self._rounds = 0

    async def start(self, **fields: Any) -> str:
        """Begin a tree in a session of its own; return its topmost run."""
        self._rounds += 1
        message = {"role": "user", "content": "go"}
        body = {"session_id": f"s{self._rounds}", "agent_id": "top", "input_message": message}
        for agent in self.agents:
            agent.called.clear()
        status, answer = await call(self.url, "POST", "/internal/invoke", body | fields)
        assert status == 200, answer
        return str(answer["run_id"])

    @property
    def leaves(self) -> int:
        """Return how many runs without children have begun."""
        return sum(len(agent.called) for agent in self.agents if not agent.calls)

    async def judge(self, run_id: str, since: float | None = None) -> int:
        """Hold a tree to its promises once its topmost run has ended; return how large it was.

        `since` is when its end was asked for, else the moment in which the first agent was left.
        """
        seen: list[bytes] = []
        await whole(self.url, run_id, seen)
        runs = await self._ended(run_id)
        await self._left({run["run_id"] for run in runs}, since)
        for run in runs:
            log = await self._log(run["run_id"])
            assert violations(log, log) == []
            events = [msgspec.json.decode(one) for one in log]
            assert [e["type"] in TERMINAL for e in events] == [*[False] * (len(events) - 1), True]
            told = [e["payload"]["child_run_id"] for e in events if "called_child" in e["type"]]
            made = {one["run_id"]: one for one in runs if one.get("parent_run_id") == run["run_id"]}
            assert len(told) == len(set(told) & made.keys()), "each once"
            for untold in made.keys() - set(told):  # its parent ended before it could be told
                assert made[untold]["status"] == "CANCELLED"
        return len(runs)

    async def _ended(self, run_id: str) -> list[dict[str, Any]]:
        async with asyncio.timeout(self._soon_s + 5):
            while True:
                status, tree = await call(self.url, "GET", f"/v1/runs/{run_id}/tree")
                assert status == 200, tree
                runs = list(flat(tree))
                if all("ended_at" in run for run in runs):
                    return runs
                await asyncio.sleep(0.01)

    async def _left(self, run_ids: set[str], since: float | None) -> None:
        ours = [one for agent in self.agents for one in agent.called if one.run_id in run_ids]
        async with asyncio.timeout(self._soon_s + 5):
            while not all(one.left_at for one in ours):
                await asyncio.sleep(0.01)
        moments = [one.left_at for one in ours if one.left_at is not None]
        if moments:
            took_s = max(moments) - (since if since is not None else min(moments))
            self._tally.most("s to the last closed socket", took_s)
            assert took_s < self._soon_s

    async def _log(self, run_id: str) -> list[bytes]:
        seen: list[bytes] = []
        await whole(self.url, run_id, seen)
        return seen


def flat(tree: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every run of a tree."""
    assert not tree.get("has_more")
    yield tree["run"]
    for child in tree["children"]:
        yield from flat(child)


@asynccontextmanager
async def growing(
    folder: Path, soon_s: float, tally: Tally, top: str | None = None, **env: str
) -> AsyncIterator[Tree]:
    """Run a server and the agents of its trees; `top` is where another one serves the topmost."""
    agents = [
        Relative("middle", ["leaf", "leaf-two"]), Relative("middle-two", ["leaf", "leaf-two"]),
        Relative("leaf"), Relative("leaf-two"),
    ]  # fmt: skip
    if top is None:
        agents.append(Relative("top", ["middle", "middle-two"]))
    with nursery() as nurse:
        server = await asyncio.to_thread(nurse.start(folder, {}, **env).up)
        async with AsyncExitStack() as stack:
            served = {
                agent.agent_id: (await stack.enter_async_context(FakeAgent(agent))).url
                for agent in agents
            }
            for name, url in {**({"top": top} if top else {}), **served}.items():
                body = {"agent_id": name, "name": name, "endpoint": url}
                status, answer = await call(server.url, "POST", "/v1/agents/register", body)
                assert status == 200, answer
            yield Tree(server.url, agents, soon_s, tally)


@pytest.fixture
def soon_s(request: pytest.FixtureRequest) -> float:
    """Hand out how long the end of a tree may take."""
    return SOON_S if request.config.getoption("--full") else SOON_S + NOISE_S


@pytest.fixture
def chance() -> random.Random:
    """Hand out when things happen."""
    return random.Random(7)


async def moment(tree: Tree, chance: random.Random) -> None:
    """Wait for a random moment: while the tree grows, or when it is whole."""
    wanted = chance.randrange(5)
    async with asyncio.timeout(10):
        while tree.leaves < wanted:
            await asyncio.sleep(0.001)
    await asyncio.sleep(chance.random() * 0.01)


async def test_a_cancelled_tree_ends_as_one(
    tmp_path: Path,
    tally: Tally,
    rounds_of: Callable[[int], int],
    soon_s: float,
    chance: random.Random,
    kept: Kept,
) -> None:
    tally.expect("cancelled while it grew", "cancelled when it was whole", "children ended")
    async with growing(tmp_path, soon_s, tally, **kept.settings) as tree:
        for _ in range(rounds_of(ROUNDS)):
            run_id = await tree.start()
            await moment(tree, chance)
            when = "when it was whole" if tree.leaves == 4 else "while it grew"
            path, body = f"/v1/runs/{run_id}:cancel", {"reason": "enough"}
            asked_at = asyncio.get_running_loop().time()
            status, _ = await call(tree.url, "POST", path, body)
            assert status == 200
            tally.fire(f"cancelled {when}")
            tally.fire("children ended", await tree.judge(run_id, asked_at) - 1)
            tally.round()


async def test_a_tree_whose_time_is_over_ends_as_one(
    tmp_path: Path,
    tally: Tally,
    rounds_of: Callable[[int], int],
    soon_s: float,
    chance: random.Random,
    kept: Kept,
) -> None:
    tally.expect("time was over", "children ended")
    async with growing(tmp_path, soon_s, tally, **kept.settings) as tree:
        for _ in range(rounds_of(ROUNDS)):
            run_id = await tree.start(timeout_ms=chance.randrange(20, 400))
            tally.fire("children ended", await tree.judge(run_id) - 1)
            _, run = await call(tree.url, "GET", f"/v1/runs/{run_id}")
            tally.fire("time was over", run["error"]["code"] == "agent_timeout")
            tally.round()


async def test_children_live_no_longer_than_the_run_above_may(
    tmp_path: Path, tally: Tally, soon_s: float, kept: Kept
) -> None:
    tally.expect("deadline passed")
    async with growing(tmp_path, soon_s, tally, RUN_MAX_MS="1500", **kept.settings) as tree:
        run_id = await tree.start()
        size = await tree.judge(run_id)
        _, found = await call(tree.url, "GET", f"/v1/runs/{run_id}/tree")
        runs = list(flat(found))
        assert {run["deadline_at"] for run in runs} == {runs[0]["deadline_at"]}
        assert runs[0]["error"]["code"] == "run_timeout"
        assert size == 7
        tally.fire("deadline passed")


@contextmanager
def parent_process(folder: Path) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """Run the topmost agent as a process of its own."""
    log = folder / "parent.log"
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-c", PARENT], stdout=out)
    try:
        yield str(until(lambda: first_line(log), "the parent serves")), process
    finally:
        process.kill()
        process.wait()


async def test_a_tree_whose_topmost_agent_is_killed_ends_as_one(
    tmp_path: Path,
    tally: Tally,
    rounds_of: Callable[[int], int],
    soon_s: float,
    chance: random.Random,
    kept: Kept,
) -> None:
    tally.expect("parent killed", "children ended")
    for number in range(rounds_of(ROUNDS // 5)):
        folder = tmp_path / str(number)
        folder.mkdir()
        with parent_process(folder) as (url, process):
            async with growing(folder, soon_s, tally, url, **kept.settings) as tree:
                run_id = await tree.start()
                await moment(tree, chance)
                killed_at = asyncio.get_running_loop().time()
                process.send_signal(signal.SIGKILL)
                tally.fire("parent killed")
                tally.fire("children ended", await tree.judge(run_id, killed_at) - 1)
                _, run = await call(tree.url, "GET", f"/v1/runs/{run_id}")
                assert run["status"] == "FAILED"
                tally.round()
