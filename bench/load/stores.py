"""A process with a store of its own: it writes at a steady rate, or reads what another one wrote.

The time of an append (CLOCK_MONOTONIC, ns) stands in the words and is known in every process. A
reader is woken by the bus of its store, or, where the store has none between processes, by a
datagram that the writer sends when the append is acknowledged.
"""

import asyncio
import re
import time
from array import array
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from itertools import count
from typing import Any, Final

from bench.load.callers import percentiles
from bench.load.control import Commands, obey
from orchestrator.buses.local import LocalBus
from orchestrator.buses.postgres import PostgresBus
from orchestrator.core import ids
from orchestrator.core.batch import Deltas
from orchestrator.core.ops import Committed, Guard, Insert, Op
from orchestrator.core.records import WAITING, Invocation, Message, Run, Timer
from orchestrator.core.states import RunState
from orchestrator.engine.tail import Tails
from orchestrator.ports import Hint, Store
from orchestrator.stores import postgres, sqlite
from orchestrator.telemetry.logs import configure
from orchestrator.testing import records
from orchestrator.world import RealWorld

_STAMP: Final = re.compile(r'"text":"@(\d{16}) ')
_TENANT: Final = "default"
_DAY_MS: Final = 86_400_000


class Place:
    """What this process can be told to do with its store."""

    def __init__(self, stack: AsyncExitStack, tasks: asyncio.TaskGroup) -> None:
        self._stack = stack
        self._tasks = tasks
        self._world = RealWorld()
        self._bus = LocalBus()
        self._tell: Callable[[bytes], None] | None = None
        self._sessions = count()
        self._runs: list[Run] = []
        self._delays = array("q")
        self._store: Store

    async def open(self, url: str, *, bus: bool = False, durability: str = "balanced") -> None:
        """Open a store, with its bus where that is to bring the hints."""
        if url.startswith("file:"):
            self._store = await sqlite.open_store(url, world=self._world, durability=durability)
        else:
            self._store = await postgres.open_store(url, world=self._world)
        if bus:
            self._bus = PostgresBus(url, self._world)
            await self._stack.enter_async_context(self._bus.running())

    async def listen(self) -> int:
        """Take hints from datagrams; return the port that they are to go to."""
        loop = asyncio.get_running_loop()
        heard = partial(_Heard, self._bus)
        transport, _ = await loop.create_datagram_endpoint(heard, ("127.0.0.1", 0))
        return int(transport.get_extra_info("sockname")[1])

    async def tell(self, port: int) -> None:
        """Send hints to a port."""
        loop = asyncio.get_running_loop()
        address = ("127.0.0.1", port)
        transport, _ = await loop.create_datagram_endpoint(
            asyncio.DatagramProtocol, remote_addr=address
        )
        self._tell = transport.sendto

    async def runs(self, number: int) -> list[str]:
        """Accept runs; return their ids."""
        self._runs = [self._minted() for _ in range(number)]
        await self._store.commit(*map(_accept, self._runs))
        return [run.run_id for run in self._runs]

    async def accept(self, seconds: float) -> dict[str, float]:
        """Accept one run after the other for so long; return how long each took."""
        took = array("q")
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            began = time.monotonic_ns()
            _good(await self._store.commit(_accept(self._minted())))
            took.append(time.monotonic_ns() - began)
        return percentiles("accept", took)

    async def change(self, width: int, seconds: float) -> float:
        """Change the state of runs, so many at once; return changes a second."""
        until = time.monotonic() + seconds
        made = count()
        async with asyncio.TaskGroup() as tasks:
            for run in self._runs[:width]:
                tasks.create_task(self._change(run, until, made))
        return next(made) / seconds

    async def _change(self, run: Run, until: float, made: "count[int]") -> None:
        while time.monotonic() < until:
            op = records.append(run, records.started(), status=RunState.RUNNING)
            _good(await self._store.commit(op))
            next(made)

    async def pace(self, rate: int, batch: int, seconds: float) -> dict[str, float]:
        """Append words to the runs in turn; return how long that took, and what CPU it took here.

        Nobody waits for an append before the next one is due.
        """
        took, problems = array("q"), list[object]()
        began, cpu = time.monotonic(), time.process_time()
        appends = int(rate * seconds) // batch
        for number in range(appends):
            wait = began + number * batch / rate - time.monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            elif number % 64 == 0:
                await asyncio.sleep(0)
            self._append(self._runs[number % len(self._runs)], batch, took, problems)
        while len(took) + len(problems) < appends:  # noqa: ASYNC110  # the event loop is measured
            await asyncio.sleep(0.001)
        if problems:
            raise RuntimeError(repr(problems[0]))
        lasted = time.monotonic() - began
        cpu = (time.process_time() - cpu) / (appends * batch) * 1e6
        return {"rate": appends * batch / lasted, "cpu": cpu, **percentiles("append", took)}

    def _append(self, run: Run, batch: int, took: "array[int]", problems: list[object]) -> None:
        stamp = time.monotonic_ns()
        texts = [f"@{stamp:016d} "] * batch
        noise = self._world.noise(ids.NOISE_BYTES * batch)
        events = Deltas(self._world.now(), texts, noise, run.run_id[-2:])

        def done(outcome: object) -> None:
            if not isinstance(outcome, Committed):
                problems.append(outcome)
                return
            took.append(time.monotonic_ns() - stamp)
            if self._tell is not None:
                self._tell(f"{run.run_id} {outcome.head}".encode())
            self._bus.publish(f"run:{run.run_id}", Hint(run.run_id, outcome.head, outcome.events))

        self._store.append(Op(run_id=run.run_id, guard=Guard(epoch=0), events=events), done)

    async def follow(self, run_ids: list[str]) -> None:
        """Read runs as hints come, from now on."""
        for run_id in run_ids:
            self._tasks.create_task(self._follow(run_id))

    async def _follow(self, run_id: str) -> None:
        async with Tails(self._store, self._bus).run(run_id) as batches:
            async for batch in batches:
                now = time.monotonic_ns()
                for text in batch.texts:
                    if sent := _STAMP.search(text):
                        self._delays.append(now - int(sent[1]))

    async def reset(self) -> None:
        """Forget what was seen so far."""
        self._delays = array("q")

    async def seen(self) -> dict[str, float]:
        """Return how old the events were that were read since `reset`."""
        return {"events": len(self._delays), **percentiles("delay", self._delays)}

    def _minted(self) -> Run:
        now, session = self._world.now(), f"s{next(self._sessions)}"
        shard = ids.shard_of(_TENANT, session)
        noise = partial(self._world.noise, ids.NOISE_BYTES)
        run_id, message_id = (ids.mint(kind, now, noise(), shard) for kind in ("run", "msg"))
        return Run(
            run_id=run_id, tenant=_TENANT, session_id=session, agent_id="load",
            message_id=message_id, created_at=now, deadline_at=now + _DAY_MS,
        )  # fmt: skip


class _Heard(asyncio.DatagramProtocol):
    """Passes datagrams on to a bus of this process."""

    def __init__(self, bus: LocalBus) -> None:
        self._bus = bus

    def datagram_received(self, data: bytes, addr: object) -> None:
        del addr
        run_id, head = data.decode().split()
        self._bus.deliver(f"run:{run_id}", Hint(run_id, int(head)))


def _accept(run: Run) -> Op:
    """Return what an invocation commits."""
    message = Message(
        message_id=run.message_id, tenant=_TENANT, session_id=run.session_id, role="user",
        content="hello", pos=WAITING, created_at=run.created_at,
    )  # fmt: skip
    invocation = Invocation(run_id=run.run_id, role="user", content="hello")
    deadline = Timer(run_id=run.run_id, kind="deadline", due_at=run.deadline_at)
    return records.accept(run, *map(Insert, (message, invocation, deadline)))


def _good(outcomes: list[Any]) -> None:
    if not all(isinstance(outcome, Committed) for outcome in outcomes):
        raise RuntimeError(f"a commit was refused: {outcomes}")


async def _begin() -> Commands:
    configure("warning", terminal=False)  # away from the answers
    stack = AsyncExitStack()
    place = Place(stack, await stack.enter_async_context(asyncio.TaskGroup()))
    names = ("open", "listen", "tell", "runs", "accept", "change", "pace", "follow", "reset",
             "seen")  # fmt: skip
    commands: dict[str, Callable[..., Awaitable[Any]]] = {n: getattr(place, n) for n in names}
    return commands


if __name__ == "__main__":
    obey(_begin)
