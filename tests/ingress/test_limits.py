"""What one device may take: connections, time, memory; and what it is told when that is over."""

import asyncio
import re
from contextlib import suppress
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from ..fault.load import Agent, register
from ..processes import Running, until
from .rig import Device, Started, connected, device, health, let_go, raw_device, raw_frame, resident

FLOOD, WARM = 24 << 20, 32


async def _closed(one: Device) -> tuple[int, str]:
    with pytest.raises(ConnectionClosed) as closed:
        await one.take()
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code, closed.value.rcvd.reason


async def _taken_to_the_close(one: Device, got: list[dict[str, Any]]) -> tuple[int, str]:
    with suppress(ConnectionClosed):
        while True:
            got.append(await one.take())
    return one.socket.close_code or 0, one.socket.close_reason or ""


async def test_too_many_devices_are_refused(server: str, start_ingress: Started) -> None:
    running = start_ingress(server, WS_MAX_CONNECTIONS="2")
    async with device(running), device(running):
        with pytest.raises(InvalidStatus) as refused:
            async with connected(running):
                pass
        assert refused.value.response.status_code == 503
        assert refused.value.response.headers["retry-after"] == "1"
    await asyncio.to_thread(until, lambda: health(running)["connections"] == 0, "they have left")
    async with device(running) as one:
        assert one.ack["type"] == "hello_ack"


async def test_a_device_that_is_not_heard_is_let_go_of(server: str, start_ingress: Started) -> None:
    running = start_ingress(server, WS_READ_TIMEOUT_MS="1000", WS_PING_MS="600000")
    async with connected(running, ping_interval=None) as one:
        await one.hello()
        code, reason = await _closed(one)
    assert (code, "nothing was heard" in reason) == (1008, True)


async def test_a_silent_device_that_answers_pings_stays(
    server: str, start_ingress: Started
) -> None:
    running = start_ingress(server, WS_READ_TIMEOUT_MS="1500", WS_PING_MS="200")
    async with connected(running, ping_interval=None) as one:
        await one.hello()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3):
                await one.socket.recv()
        assert (await one.hello())["type"] == "hello_ack"


@pytest.mark.parametrize(
    ("env", "why"),
    [
        ({"WS_WRITE_TIMEOUT_MS": "600000", "WS_BUFFER_SIZE": "64KB"}, "too slowly"),
        ({"WS_WRITE_TIMEOUT_MS": "500", "WS_BUFFER_SIZE": "1GB"}, "nothing for too long"),
    ],
)
async def test_a_device_that_does_not_read_is_cut_and_resumes(
    server: str, start_ingress: Started, env: dict[str, str], why: str
) -> None:
    running = start_ingress(server, **env)
    patient = start_ingress(server, WS_BUFFER_SIZE="1GB")
    async with (
        Agent(deltas=30_000, pause_s=0).serving() as agent_url,
        device(patient, session_id=re.sub(r"\W", "", why)) as reads,
    ):
        await register(server, agent_url)
        session = reads.ack["session_id"]
        async with connected(running, max_queue=1, ping_interval=None) as deaf:
            ack = await deaf.hello(session_id=session)
            await reads.invoke()
            got: list[dict[str, Any]] = []
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(reads.take_run())
                await let_go(running)
                code, reason = await _taken_to_the_close(deaf, got)
            told = reading.result()
        assert (code, why in reason) == (1013, True)
        assert got == told[: len(got)]
        assert len(got) < len(told)
        last = {got[-1]["run_id"]: got[-1]["seq"]} if got else None
        async with device(running, session_id=session, cursor=ack["cursor"], last_seq=last) as back:
            rest = await back.take_run()
        assert [m["event_id"] for m in got + rest] == [m["event_id"] for m in told]


async def test_pings_that_nobody_reads_the_answers_of_cost_nothing(
    server: str, start_ingress: Started
) -> None:
    running = start_ingress(server)
    async with raw_device(running) as (reader, writer):
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # a read transport, too
        assert await _grown(running, writer, raw_frame(9, b"x" * 125)) < 8 << 20
        writer.write(raw_frame(9, b"the last"))
        writer.transport.resume_reading()  # type: ignore[attr-defined]  # as above
        async with asyncio.timeout(20):
            found = b""
            while not found.endswith(b"the last"):
                found = found[-8:] + await reader.read(1 << 16)


async def test_empty_pieces_of_a_message_cost_nothing(server: str, start_ingress: Started) -> None:
    running = start_ingress(server)
    async with raw_device(running) as (reader, writer):
        writer.write(raw_frame(1, b'{"type":', last=False))
        assert await _grown(running, writer, raw_frame(0, last=False), 12 << 20) < 6 << 20
        writer.write(raw_frame(0, b'"hello"}'))
        async with asyncio.timeout(20):
            await reader.readuntil(b"hello_ack")


async def _grown(
    running: Running, writer: asyncio.StreamWriter, frame: bytes, flood: int = FLOOD
) -> int:
    """Send a frame again and again; return by how many bytes the ingress has grown."""
    many = frame * ((64 << 10) // len(frame))
    before = 0
    for n in range(flood // len(many)):
        if n == WARM:  # what reading itself takes is there now
            before = resident(running)
        writer.write(many)
        await writer.drain()
    return resident(running) - before
