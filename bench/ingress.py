"""Whether a slow, hung or absent ingress slows the runs: the same runs on four servers in turn."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from typing import Final

from bench.report import Row, Size
from bench.rig import Rig
from tests.fault.ingress import Ingress
from tests.fault.load import Agent, follow, invoke, register
from tests.processes import Running, start_server

ROUNDS: Final = 5
WIDTH: Final = 8
DELTAS: Final = 50
PAUSE_S: Final = 0.02
BOUND: Final = 1.1
ORDER: Final = ("off", "slow", "hung", "absent")


def measure(rig: Rig, size: Size) -> Iterator[Row]:
    """Yield the ratio of a run's time with each kind of ingress to its time with none."""
    times = asyncio.run(_times(rig.folder(), size.rounds * ROUNDS))
    for name in ("slow", "hung", "absent"):
        ratio = median(times[name]) / median(times["off"])
        yield Row("ingress", f"time of a run, {name} ingress : none", ratio, most=BOUND)
    yield Row("ingress", "time of a run without ingress", median(times["off"]) * 1000, "ms")


async def _times(folder: Path, rounds: int) -> dict[str, list[float]]:
    ingresses = {"slow": Ingress(delay_s=0.01), "hung": Ingress(hung=True), "absent": Ingress()}
    async with AsyncExitStack() as stack:
        agent_url = await stack.enter_async_context(Agent(DELTAS, PAUSE_S).serving())
        for name in ("slow", "hung"):
            await stack.enter_async_context(ingresses[name].serving())
        urls = {"off": "off"} | {name: ingress.url for name, ingress in ingresses.items()}
        servers = {name: await _server(folder / name, url, stack) for name, url in urls.items()}
        for server in servers.values():
            await register(server.url, agent_url)
        times: dict[str, list[float]] = {name: [] for name in servers}
        for number in range(rounds):
            for name in (*ORDER[number % 4 :], *ORDER[: number % 4]):
                times[name] += await _round(servers[name].url, number)
    # Connections still open are cancelled with the loop, which Python 3.11's streams call an error.
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    return times


async def _server(folder: Path, ingress_url: str, stack: AsyncExitStack) -> Running:
    folder.mkdir()  # noqa: ASYNC240  # before anything is measured
    server = await asyncio.to_thread(start_server, folder, INGRESS_URL=ingress_url)
    stack.callback(server.kill)
    return server


async def _round(url: str, number: int) -> list[float]:
    async with asyncio.TaskGroup() as tasks:
        runs = [tasks.create_task(_run(url, f"s{number}-{n}")) for n in range(WIDTH)]
    return [run.result() for run in runs]


async def _run(url: str, session: str) -> float:
    began = time.perf_counter()
    run_id = await invoke(url, session)
    log: list[bytes] = []
    while not await follow(url, run_id, log):
        pass
    return time.perf_counter() - began
