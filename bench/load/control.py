"""How a load process is told what to do: one JSON line in, one JSON line out, until input ends."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
import uvloop

Commands = Mapping[str, Callable[..., Awaitable[Any]]]


def obey(begin: Callable[[], Awaitable[Commands]]) -> None:
    """Run a load process: `begin` returns its commands, each line names one and its arguments."""
    uvloop.run(_obey(begin))


async def _obey(begin: Callable[[], Awaitable[Commands]]) -> None:
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    commands = await begin()
    while line := await lines.readline():
        said = msgspec.json.decode(line)
        try:
            answer = await commands[said.pop("do")](**said)
        except Exception as problem:  # noqa: BLE001  # the border of the process: it says why
            sys.exit(f"{line.decode().strip()}: {_first(problem)!r}")
        print(msgspec.json.encode(answer).decode(), flush=True)


def _first(problem: BaseException) -> BaseException:
    while isinstance(problem, BaseExceptionGroup):
        problem = problem.exceptions[0]
    return problem
