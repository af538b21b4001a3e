"""Devices that drop at random over two ingress processes, while the orchestrator is killed."""

import asyncio
import random
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from websockets.exceptions import ConnectionClosed, InvalidHandshake

from ..ingress.rig import (
    Device,
    connected,
    device,
    ingress_process,
    let_go,
    pushed_of,
    raw_device,
    raw_frame,
    resident,
)
from ..processes import Running
from ..rigs import Tally
from .load import CUT, Agent, call, invoke, register

DEVICES, SESSIONS, DELTAS = 4, 2, 200
Start = Callable[..., Running]
BROKEN = (ConnectionClosed, InvalidHandshake, *CUT)


@dataclass
class Wanderer:
    """A device that comes and goes, to either ingress, and keeps all that it was sent."""

    session: str
    places: list[Running]
    rnd: random.Random
    tally: Tally
    got: dict[str, list[int]] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    cursor: str | None = "start"
    doubles: int = 0
    drops: int = 0

    async def wander(self, budget: Callable[[], bool], done: Callable[[], bool]) -> None:
        """Connect, read some, drop without a word; at the end of the budget read to the end."""
        while not done() or not self._whole():
            try:
                await self._visit(budget, done)
            except BROKEN:
                self.tally.fire("broken off")
                await asyncio.sleep(0.02)

    def _whole(self) -> bool:
        return self.ended >= self.got.keys()

    async def _visit(self, budget: Callable[[], bool], done: Callable[[], bool]) -> None:
        place = self.rnd.choice(self.places)
        async with connected(place) as one:
            await one.say(type="hello", session_id=self.session, **self._where())
            drops = budget()
            left = self.rnd.randrange(1, 120)
            while not (done() and self._whole()):
                if drops and left <= 0:
                    self.drops += 1
                    self.tally.fire("dropped")
                    one.socket.transport.abort()
                    return
                left -= await self._read(one)

    def _where(self) -> dict[str, Any]:
        """Return how far it came: by cursor and seqs, or by seqs alone where it knows of runs."""
        last = {run_id: seqs[-1] for run_id, seqs in self.got.items()}
        if last and self.rnd.random() < 0.5:
            self.tally.fire("resumed by last_seq")
            return {"last_seq": last}
        self.tally.fire("resumed by cursor")
        return {"cursor": self.cursor, "last_seq": last}

    async def _read(self, one: Device) -> int:
        try:
            async with asyncio.timeout(0.5):
                message = await one.take()
        except TimeoutError:
            return 0
        self.cursor = message.get("cursor") or self.cursor
        if "seq" not in message:
            return 1
        seqs = self.got.setdefault(message["run_id"], [])
        if seqs and message["seq"] <= seqs[-1]:
            self.doubles += 1
        seqs.append(message["seq"])
        if message["type"] in ("done", "error"):
            self.ended.add(message["run_id"])
        return 1


async def _runs(url: str, session: str, stop: Callable[[], bool], tally: Tally) -> None:
    while not stop():
        try:
            await invoke(url, session)
        except (AssertionError, *CUT):
            tally.fire("invoked in vain")
        await asyncio.sleep(0.4)


async def test_devices_that_drop_at_random_see_the_log_exactly(
    start_server: Start, tmp_path: Path, rounds_of: Callable[[int], int], tally: Tally
) -> None:
    drops = rounds_of(1000)
    tally.expect("dropped", "killed", "resumed by cursor", "resumed by last_seq")
    server = await asyncio.to_thread(start_server, DURABILITY="full")
    port = server.url.rpartition(":")[2]
    with ExitStack() as stack:
        places = [
            await asyncio.to_thread(stack.enter_context, ingress_process(tmp_path, server.url))
            for _ in range(2)
        ]
        async with Agent(deltas=DELTAS, pause_s=0.01).serving() as agent_url:
            await register(server.url, agent_url)
            wanderers = [
                Wanderer(f"s{n % SESSIONS}", places, random.Random(n), tally)
                for n in range(DEVICES)
            ]

            def gone() -> int:
                return sum(one.drops for one in wanderers)

            over = asyncio.Event()
            async with asyncio.timeout(60 + drops), asyncio.TaskGroup() as tasks:
                callers = [
                    tasks.create_task(_runs(server.url, f"s{n}", lambda: gone() >= drops, tally))
                    for n in range(SESSIONS)
                ]
                for one in wanderers:
                    tasks.create_task(one.wander(lambda: gone() < drops, over.is_set))
                await _kill_in_the_middle(start_server, server, port, gone, drops, tally)
                await asyncio.wait(callers)
                logs = await _logs(server.url)
                while not _all_got(wanderers, logs):
                    await asyncio.sleep(0.05)
                over.set()
    for one in wanderers:
        wanted = {run_id: seqs for run_id, seqs in logs.items() if _session(run_id) == one.session}
        assert one.doubles == 0
        assert one.got == wanted
    tally.round(gone())


async def _kill_in_the_middle(
    start: Start, server: Running, port: str, gone: Callable[[], int], drops: int, tally: Tally
) -> None:
    """Kill the orchestrator at a third and at two thirds of the drops, and start it again."""
    for share in (1, 2):
        while gone() < drops * share // 3:
            await asyncio.sleep(0.02)
        await asyncio.to_thread(server.kill)
        tally.fire("killed")
        await asyncio.sleep(0.3)
        server = await asyncio.to_thread(start, HTTP_PORT=port, DURABILITY="full")


SESSION_OF: dict[str, str] = {}


def _session(run_id: str) -> str:
    return SESSION_OF[run_id]


async def _logs(url: str) -> dict[str, list[int]]:
    """Wait until all runs have ended; return the seqs that devices should have had of each."""
    while True:
        runs = await _all_runs(url)
        if all(run["status"] in ("DONE", "FAILED", "CANCELLED") for run in runs):
            break
        await asyncio.sleep(0.1)
    SESSION_OF.update({run["run_id"]: run["session_id"] for run in runs})
    return {run["run_id"]: await pushed_of(url, run["run_id"]) for run in runs}


async def _all_runs(url: str) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = []
    cursor = ""
    while True:
        _, page = await call(url, "GET", f"/v1/runs?limit=1000{cursor}")
        runs += page["runs"]
        if not page["has_more"]:
            return runs
        cursor = f"&cursor={page['next_cursor']}"


def _all_got(wanderers: list[Wanderer], logs: dict[str, list[int]]) -> bool:
    return all(
        one.got.get(run_id, [0])[-1] >= seqs[-1]
        for one in wanderers
        for run_id, seqs in logs.items()
        if _session(run_id) == one.session
    )


async def test_a_device_that_never_reads_costs_bounded_memory(
    start_server: Start, tmp_path: Path, tally: Tally
) -> None:
    tally.expect("cut off")
    server = await asyncio.to_thread(start_server, MAX_RUN_BYTES="1GB")
    with (
        ingress_process(tmp_path, server.url, WS_WRITE_TIMEOUT_MS="2000") as running,
        ingress_process(tmp_path, server.url, WS_BUFFER_SIZE="1GB") as patient,
    ):
        async with (
            Agent(deltas=60_000, pause_s=0.0).serving() as agent_url,
            device(patient, session_id="deaf") as reads,
            AsyncExitStack() as stack,
        ):
            await register(server.url, agent_url)
            deaf = [await stack.enter_async_context(raw_device(running)) for _ in range(8)]
            for one in deaf:
                await _greet_and_be_deaf(*one)
            before = resident(running)
            await reads.invoke()
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(reads.take_run())
                await let_go(running)
                grown = resident(running) - before
                async with asyncio.timeout(30):
                    for one in deaf:
                        assert await _close_code(*one) == 1013
                        tally.fire("cut off")
            told = reading.result()
            assert told[-1]["type"] == "done"
            grown = max(grown, resident(running) - before)
            tally.most("MiB grown", grown / (1 << 20))
            assert grown < 64 << 20
        async with device(running, session_id="deaf", last_seq={told[0]["run_id"]: 59_000}) as back:
            assert (await back.take_run())[-1]["type"] == "done"
    tally.round(len(deaf))


async def _greet_and_be_deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(raw_frame(1, b'{"type":"hello","session_id":"deaf"}'))
    assert b"hello_ack" in await reader.read(4096)
    writer.transport.pause_reading()  # type: ignore[attr-defined]  # a read transport, too


async def _close_code(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int | None:
    """Read what waits; return the code of the close frame at its end, None where there is none."""
    writer.transport.resume_reading()  # type: ignore[attr-defined]  # as above
    try:
        while True:
            head = await reader.readexactly(2)
            size = head[1]
            if size >= 126:
                size = int.from_bytes(await reader.readexactly(2 if size == 126 else 8))
            body = await reader.readexactly(size)
            if head[0] == 0x88:
                return int.from_bytes(body[:2])
    except (EOFError, OSError):
        return None
    finally:
        writer.close()
