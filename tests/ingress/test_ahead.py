"""A loss of power takes what devices read beyond the ingress's stream, of which it is not told."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest
from websockets.exceptions import ConnectionClosed

from orchestrator.api.streams import resume_point

from ..fault.listening import listening
from .rig import PATIENCE_S, Device, Started, device

OPEN, OTHER = "run_open", "run_other"
RESET = {"type": "log_reset", "run_id": OPEN, "after_seq": 3}


def _words(run_id: str, word: str, first: int, last: int) -> list[dict[str, Any]]:
    return [
        {
            "event_id": f"evt_{word}_{seq}", "run_id": run_id, "seq": seq, "ts": seq,
            "type": "agent_stream_delta", "payload": {"text": word},
        }
        for seq in range(first, last + 1)
    ]  # fmt: skip


class Orchestrator:
    """Two open runs of a session: their logs can be read, and the stream says nothing of them."""

    def __init__(self) -> None:
        self.logs = {OPEN: _words(OPEN, "old", 1, 5), OTHER: _words(OTHER, "other", 1, 1)}
        self.forks: list[int] = []
        self.streams = 0
        self.streaming = asyncio.Event()
        self.streaming.set()
        self.refused = asyncio.Event()
        self.readable = asyncio.Event()
        self.readable.set()
        self.asked_other = asyncio.Event()
        self._open: set[asyncio.StreamWriter] = set()

    def lose_power(self) -> None:
        """End all streams; of the open run two words are gone, and it has gone on."""
        self.logs[OPEN] = self.logs[OPEN][:3] + _words(OPEN, "new", 4, 6)
        self.forks.append(3)
        self.hang_up()

    def hang_up(self) -> None:
        for writer in self._open:
            writer.close()
        self._open.clear()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[0]
        url = urlsplit(line.split()[1])
        if url.path == "/v1/sessions/s/events":
            await self._stream(writer)
            return
        body = msgspec.json.encode(await self._found(url.path, parse_qs(url.query)))
        head = f"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)

    async def _stream(self, writer: asyncio.StreamWriter) -> None:
        if not self.streaming.is_set():
            self.refused.set()
            return
        self.streams += 1
        self._open.add(writer)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n: hello\n\n")
        await writer.wait_closed()

    async def _found(self, path: str, query: dict[str, list[str]]) -> dict[str, Any]:
        if path == "/v1/sessions/s":
            return {"session_id": "s", "cursor": "c"}
        if path == "/v1/runs":
            told = {"status": "RUNNING", "last_seq": 1}
            runs = [{"run_id": OTHER, "created_at": 2}, {"run_id": OPEN, "created_at": 1}]
            return {"runs": [run | told for run in runs], "has_more": False}
        run_id = path.split("/")[3]
        if run_id == OTHER:
            self.asked_other.set()
            await self.readable.wait()
        return self._page(run_id, query["cursor"][0])

    def _page(self, run_id: str, cursor: str) -> dict[str, Any]:
        forks = self.forks if run_id == OPEN else []
        point = resume_point(None, cursor)
        agreed = point.agreed(forks)
        seq = point.seq if agreed is None else agreed
        events = self.logs[run_id][seq:]
        mark = f".{len(forks)}" if forks else ""
        page = {"events": events, "has_more": False, "next_cursor": f"{seq + len(events)}{mark}"}
        return page | ({"log_reset": {"after_seq": agreed}} if agreed is not None else {})

    async def streamed(self, times: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while self.streams < times:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def _serving(start: Started) -> AsyncIterator[tuple[Orchestrator, Any]]:
    orchestrator = Orchestrator()
    async with listening(orchestrator.answer) as port:
        running = await asyncio.to_thread(start, f"http://127.0.0.1:{port}")
        async with device(running, session_id="s"):  # so that the stream began before the words
            await orchestrator.streamed(1)
            yield orchestrator, running


async def _texts(one: Device, count: int) -> list[str]:
    return [(await one.take())["text"] for _ in range(count)]


async def _goes_back(one: Device) -> None:
    reset = await one.take()
    assert reset.pop("cursor")
    assert reset == RESET
    assert await _texts(one, 3) == ["new"] * 3


async def test_a_device_that_is_ahead_is_sent_to_come_again(start_ingress: Started) -> None:
    async with _serving(start_ingress) as (orchestrator, running):
        async with device(running, session_id="s", cursor="start") as one:
            assert await _texts(one, 6) == ["old"] * 5 + ["other"]
            orchestrator.lose_power()
            with pytest.raises(ConnectionClosed) as closed:
                await one.take()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
        had = {OPEN: 5, OTHER: 1}
        cursor = one.ack["cursor"]
        async with device(running, session_id="s", cursor=cursor, last_seq=had) as one:
            await _goes_back(one)


async def test_a_device_that_is_catching_up_goes_back(start_ingress: Started) -> None:
    async with _serving(start_ingress) as (orchestrator, running):
        orchestrator.readable.clear()
        async with device(running, session_id="s", cursor="start") as one:
            assert await _texts(one, 5) == ["old"] * 5
            await orchestrator.asked_other.wait()
            orchestrator.lose_power()
            await orchestrator.streamed(2)
            orchestrator.readable.set()
            assert await _texts(one, 1) == ["other"]
            await _goes_back(one)


async def test_a_device_that_came_while_the_stream_was_away_goes_back(
    start_ingress: Started,
) -> None:
    async with _serving(start_ingress) as (orchestrator, running):
        orchestrator.streaming.clear()
        orchestrator.hang_up()
        await orchestrator.refused.wait()
        async with device(running, session_id="s", cursor="start") as one:
            assert await _texts(one, 6) == ["old"] * 5 + ["other"]
            orchestrator.lose_power()
            orchestrator.streaming.set()
            await _goes_back(one)
