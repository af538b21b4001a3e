"""Callers and readers: each connection invokes a run, follows it to its end, and times both."""

import asyncio
import itertools
import os
import re
import time
from array import array
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from bench.load.control import Commands, obey

WAVE: Final = 64
"""How many connections are opened at once."""
_STAMP: Final = re.compile(rb'"text":"@(\d{16}) ')
_RUN: Final = re.compile(rb'"run_id":\s*"([^"]+)"')
_LENGTH: Final = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_DELTA: Final = b"delta\ndata: "
_TAIL: Final = len(_DELTA) - 1
_END: Final = b"\r\n0\r\n\r\n"
_BODY: Final = (
    b'{"session_id":"%s","agent_id":"load","run_id":"r","input_message":'
    b'{"role":"user","content":"%s"},"messages":[],"context":{}}'
)


class Target:
    """Who is called, and what the callers have seen of it since `reset`."""

    def __init__(self, port: int, *, relays: bool) -> None:
        self.port = port
        self.relays = relays  # it speaks the agents' protocol: the invocation is the stream
        self.sessions = itertools.count()
        self.streaming = 0
        self.reset()

    def reset(self) -> None:
        self.events = 0
        self.ended = 0
        self.delays = array("q")
        self.invokes = array("q")


class Caller(asyncio.Protocol):
    """One connection: `run` invokes a run and follows it; once that is `over`, it may again."""

    def __init__(self, target: Target, message: str, *, deaf: bool = False) -> None:
        self._target = target
        self._message = message.encode()
        self._deaf = deaf
        self._received = b""
        self._tail = b""
        self._began = 0
        self._following = False
        loop = asyncio.get_running_loop()
        self.streaming = loop.create_future()
        self.over = loop.create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        lost = ConnectionError(f"the server closed a connection ({exc}): {self._received[:500]!r}")
        for future in (self.streaming, self.over):
            if not future.done():
                future.set_exception(lost)
                future.exception()  # those who wait raise it; for the others it is nothing
        if self._following:
            self._target.streaming -= 1

    def run(self) -> None:
        """Start a run and follow it."""
        loop = asyncio.get_running_loop()
        self.streaming, self.over = loop.create_future(), loop.create_future()
        number = b"s%d-%d" % (os.getpid(), next(self._target.sessions))
        self._began = time.monotonic_ns()
        path = b"/invoke" if self._target.relays else b"/internal/invoke"
        body = _BODY % (number, self._message)
        self.transport.write(
            b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (path, len(body), body)
        )
        if self._target.relays:
            self._follow()

    def read(self, run_id: bytes) -> None:
        """Follow a run that somebody started."""
        self.transport.write(
            b"GET /v1/runs/%s/events/stream HTTP/1.1\r\nHost: localhost\r\n"
            b"Accept: text/event-stream\r\n\r\n" % run_id
        )
        self._follow()
        if self._deaf:
            self.transport.pause_reading()
            self.streaming.set_result(None)

    def _follow(self) -> None:
        self._following = True
        self._tail = b""
        self._target.streaming += 1

    def data_received(self, data: bytes) -> None:
        if self._following:
            self._take(data)
            return
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if found and length is not None and len(body) >= int(length[1]):
            self._target.invokes.append(time.monotonic_ns() - self._began)
            run_id = _RUN.search(body)
            if not head.startswith(b"HTTP/1.1 200") or run_id is None:
                self.transport.abort()
                return
            self._received = b""
            self.run_id = run_id[1]
            self.read(self.run_id)

    def _take(self, data: bytes) -> None:
        target = self._target
        now = time.monotonic_ns()
        for sent in _STAMP.findall(data):
            target.delays.append(now - int(sent))
        tail = self._tail
        target.events += data.count(_DELTA) + (tail + data[:_TAIL]).count(_DELTA)
        self._tail = data[-_TAIL:] if len(data) >= _TAIL else (tail + data)[-_TAIL:]
        if not self.streaming.done():
            self.streaming.set_result(None)
        if self._tail.endswith(_END):
            self._following = False
            target.streaming -= 1
            target.ended += 1
            if not self.over.done():
                self.over.set_result(None)


class Callers:
    """What this process can be told to do."""

    def __init__(self) -> None:
        self._target = Target(0, relays=False)
        self._open: list[Caller] = []

    async def target(self, port: int, *, relays: bool = False) -> None:
        """Name who is called; connections to the one before are closed."""
        await self.close()
        self._target = Target(port, relays=relays)

    async def open(self, runs: int, message: str, *, wait: bool = True) -> None:
        """Start runs, each with a reader on its own connection; `wait` for the first bytes."""
        gate = asyncio.Semaphore(WAVE)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(runs):
                tasks.create_task(self._start(gate, message, wait=wait))

    async def _start(self, gate: asyncio.Semaphore, message: str, *, wait: bool) -> None:
        async with gate:
            caller = await self._connect(message)
            self._open.append(caller)
            caller.run()
            if wait:
                await caller.streaming

    async def _connect(self, message: str, *, deaf: bool = False) -> Caller:
        make = partial(Caller, self._target, message, deaf=deaf)
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(make, "127.0.0.1", self._target.port))[1]

    async def run(self, runs: int, message: str) -> float:
        """Follow runs from invocation to end; return the seconds from the first to the last."""
        callers = [await self._connect(message) for _ in range(runs)]
        began = time.monotonic()
        for caller in callers:
            caller.run()
        for caller in callers:
            await caller.over
        took = time.monotonic() - began
        for caller in callers:
            caller.transport.close()
        return took

    async def read(self, run_id: str) -> float:
        """Read a run's stream to its end; return the seconds it took."""
        caller = await self._connect("")
        began = time.monotonic()
        caller.read(run_id.encode())
        await caller.over
        caller.transport.close()
        return time.monotonic() - began

    async def join(self, number: int, *, deaf: bool = False) -> None:
        """Read the run that connection `number` follows once more, or ask and never read."""
        caller = await self._connect("", deaf=deaf)
        self._open.append(caller)
        caller.read(self._open[number].run_id)

    async def churn(
        self, connections: int, message: str, seconds: float, rate: float | None = None
    ) -> dict[str, float]:
        """Start run after run on each connection, at `rate` a second in all or without pause."""
        callers = [await self._connect(message) for _ in range(connections)]
        self._target.reset()
        began = time.monotonic()
        every = connections / rate if rate else 0.0
        async with asyncio.TaskGroup() as tasks:
            for number, caller in enumerate(callers):
                first = began + every * number / connections
                tasks.create_task(_again(caller, first, every, began + seconds))
        took = time.monotonic() - began
        for caller in callers:
            caller.transport.close()
        return {"runs": self._target.ended / took, **await self.seen()}

    async def reset(self) -> None:
        """Forget what was seen so far."""
        self._target.reset()

    async def seen(self) -> dict[str, float]:
        """Return what was seen since `reset`."""
        target = self._target
        counts = {"events": target.events, "ended": target.ended, "streaming": target.streaming}
        delays = percentiles("delay", target.delays)
        return {**counts, **delays, **percentiles("invoke", target.invokes)}

    async def close(self) -> None:
        """Close all connections."""
        for caller in self._open:
            caller.transport.abort()
        self._open.clear()
        await asyncio.sleep(0)


async def _again(caller: Caller, first: float, every: float, last: float) -> None:
    due = first
    while (now := time.monotonic()) < last:
        if due > now:
            await asyncio.sleep(due - now)
        due += every
        caller.run()
        await caller.over


def percentiles(name: str, nanoseconds: "array[int]") -> dict[str, float]:
    """Return percentiles in milliseconds by name; nothing when there is nothing."""
    ordered = sorted(nanoseconds)
    shares: Mapping[str, float] = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}
    if not ordered:
        return {}
    return {f"{name}_{p}": ordered[int(len(ordered) * share)] / 1e6 for p, share in shares.items()}


async def _begin() -> Commands:
    callers = Callers()
    names = ("target", "open", "run", "read", "join", "churn", "reset", "seen", "close")
    commands: dict[str, Any] = {name: getattr(callers, name) for name in names}
    return commands


if __name__ == "__main__":
    obey(_begin)
