"""Agents that cost next to nothing; what one does is said by the message it is invoked with.

`short N` answers N deltas and the end in one write. `burst N` sends N deltas as fast as the socket
takes them. `paced NAME SIZE` sends deltas when the command `pace` says so. The time of sending
(CLOCK_MONOTONIC, ns) stands in the text, so that a reader in another process knows how long the
delta took; with SIZE bytes of filling behind it, it is not timed.
"""

import asyncio
import os
import random
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Final

import msgspec

from bench.load.control import Commands, obey

HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
DELTA: Final = b'event: delta\ndata: {"text":"%s"}\n\n'
DONE: Final = b'event: done\ndata: {"final_message":"ok","usage":{"total_tokens":1}}\n\n'
END: Final = b"0\r\n\r\n"
BLOCK: Final = 512
"""How many deltas of a burst are one chunk."""
_LENGTH: Final = b"content-length:"
_NO_HEALTH: Final = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


class _Message(msgspec.Struct):
    content: str


class _Invocation(msgspec.Struct):
    input_message: _Message


def chunk(data: bytes) -> bytes:
    """Return the bytes as one HTTP chunk."""
    return b"%x\r\n%s\r\n" % (len(data), data)


@cache
def deltas(count: int) -> bytes:
    """Return a chunk of `count` deltas, as long as paced ones are."""
    return chunk(b"".join(DELTA % (b"word %012d " % n) for n in range(count)))


class Groups:
    """The paced streams by name, and the thread that paces them."""

    def __init__(self) -> None:
        self.streams: dict[str, list[Stream]] = {}
        self._thread: threading.Thread | None = None
        self._late: list[int] = []
        self._problem: OSError | None = None

    async def streaming(self, group: str) -> int:
        """Return how many streams of a group are open."""
        return len(self.streams.get(group, []))

    async def pace(self, rates: Mapping[str, float], seconds: float) -> None:
        """Send deltas over the streams of each group, so many a second in all, for so long."""
        self._late, self._problem = [], None
        dues = self._dues(rates, seconds)
        self._thread = threading.Thread(target=self._pace, args=(dues,), daemon=True)
        self._thread.start()

    async def settle(self) -> dict[str, float]:
        """Wait for the pacing to end; return how many deltas were sent and how late the p99."""
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
        if self._problem is not None:
            raise self._problem
        late = sorted(self._late)
        return {"sent": len(late), "late_p99_ms": late[int(len(late) * 0.99)] / 1e6}

    async def end(self, group: str) -> None:
        """End the streams of a group."""
        for stream in self.streams.pop(group, []):
            stream.end()

    def _dues(self, rates: Mapping[str, float], seconds: float) -> Iterator[tuple[float, "Stream"]]:
        """Yield (second, stream): each stream steady, their phases scattered by a fixed seed."""
        scatter = random.Random(1)  # noqa: S311  # phases, no secrets
        period = []
        for group, rate in rates.items():
            streams = self.streams[group]
            own = len(streams) / rate
            period += [(scatter.random() * own, own, stream) for stream in streams]
        return _merged(period, seconds)

    def _pace(self, dues: Iterator[tuple[float, "Stream"]]) -> None:
        began = time.monotonic()
        try:
            for due, stream in dues:
                wait = began + due - time.monotonic()
                if wait > 0:
                    time.sleep(wait)
                stamp = time.monotonic_ns()
                if stream.tick(stamp):
                    self._late.append(stamp - int((began + due) * 1e9))
        except OSError as problem:
            self._problem = problem


def _merged(
    period: list[tuple[float, float, "Stream"]], seconds: float
) -> Iterator[tuple[float, "Stream"]]:
    """Yield every due time of all streams in order."""
    dues = [
        (phase + n * own, number)
        for number, (phase, own, _) in enumerate(period)
        for n in range(int((seconds - phase) / own) + 1)
        if phase < seconds
    ]
    return ((due, period[number][2]) for due, number in sorted(dues))


class Stream(asyncio.Protocol):
    """One connection of an agent."""

    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        self._received = b""
        self._paused = False
        self._left = 0
        self._rest = b""
        self._group = ""
        self._filling = b""
        self._size = 0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._descriptor = transport.get_extra_info("socket").fileno()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._descriptor = -1
        self._left = 0
        if self in self._groups.streams.get(self._group, []):
            self._groups.streams[self._group].remove(self)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._pump()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        if head.startswith(b"GET"):  # the server asks how we are
            self._received = body
            self.write(_NO_HEALTH)
            return
        length = int(head.lower().partition(_LENGTH)[2].partition(b"\r\n")[0])
        if len(body) >= length:
            self._received = body[length:]
            message = msgspec.json.decode(body[:length], type=_Invocation).input_message
            self._answer(*message.content.split())

    def _answer(self, mode: str, *arguments: str) -> None:
        match mode, arguments:
            case "short", (count,):
                self.write(HEAD + deltas(int(count)) + chunk(DONE) + END)
            case "burst", (count,):
                self.write(HEAD)
                self._left = int(count)
                self._pump()
            case "paced", (group, size):
                self.write(HEAD)
                self._group, self._filling = group, b"." * int(size)
                self._size = len(DELTA % self._text(0))
                self._groups.streams.setdefault(group, []).append(self)
            case _:
                raise ValueError(f"no agent does {mode!r}")

    def _text(self, stamp: int) -> bytes:
        return b"%s%016d %s" % (b"#" if self._filling else b"@", stamp, self._filling)

    def tick(self, stamp: int) -> bool:
        """Send one delta, past the transport, which is idle; return whether it went out.

        Called on the pacing thread. Nothing new is said while the socket is full.
        """
        if self._descriptor < 0:
            raise ConnectionError("what is measured hung up on an agent")
        new = not self._rest
        data = self._rest or b"%x\r\n%s\r\n" % (self._size, DELTA % self._text(stamp))
        try:
            sent = os.write(self._descriptor, data)
        except BlockingIOError:
            return False
        self._rest = data[sent:]
        return new

    def end(self) -> None:
        """Say that it is done."""
        self.write(self._rest + chunk(DONE) + END)

    def write(self, data: bytes) -> None:
        """Write through the transport."""
        self._transport.write(data)

    def _pump(self) -> None:
        while self._left and not self._paused:
            count = min(BLOCK, self._left)
            self._left -= count
            self.write(deltas(count))
            if not self._left:
                self.write(chunk(DONE) + END)


async def _begin() -> Commands:
    groups = Groups()
    loop = asyncio.get_running_loop()
    await loop.create_server(lambda: Stream(groups), "127.0.0.1", int(sys.argv[1]), backlog=4096)
    names: dict[str, Any] = {
        "streaming": groups.streaming,
        "pace": groups.pace,
        "settle": groups.settle,
        "end": groups.end,
    }
    return names


if __name__ == "__main__":
    obey(_begin)
