"""The power fails, and words that devices saw are gone: they are told, and see the new log."""

import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest

from ..fault.load import Agent, call, register
from ..processes import Running
from .rig import PUSHED, Device, Started, device

NAME = "orchestrator.db"


class Power:
    """The disk of a server: what is on it at a moment, and nothing later, is left at the end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._safe = folder / "safe"

    def note(self, server: Running) -> None:
        """Have everything written so far be safe."""
        server.process.send_signal(signal.SIGSTOP)
        self._safe.mkdir()
        for path in self._files(self._folder):
            shutil.copy(path, self._safe)
        server.process.send_signal(signal.SIGCONT)

    def fail(self, server: Running) -> None:
        """End the server and its host."""
        server.kill()
        for path in [*self._files(self._folder), self._folder / f"{NAME}-shm"]:
            path.unlink(missing_ok=True)
        for path in self._files(self._safe):
            shutil.copy(path, self._folder)
        with closing(apsw.Connection(str(self._folder / NAME))) as db:
            [(data,)] = db.execute("SELECT data FROM blobs WHERE name = 'host'").fetchall()
            assert isinstance(data, bytes)
            mark = msgspec.json.encode(msgspec.json.decode(data) | {"boot": "another"})
            db.execute("UPDATE blobs SET data = ? WHERE name = 'host'", (mark,))

    @staticmethod
    def _files(folder: Path) -> list[Path]:
        return [path for path in (folder / NAME, folder / f"{NAME}-wal") if path.exists()]


@asynccontextmanager
async def _agent(server: str) -> AsyncIterator[None]:
    async with Agent(deltas=300, pause_s=0.03).serving() as agent_url:
        await register(server, agent_url, on_lost="retry")
        yield


async def _until(one: Device, seq: int) -> list[dict[str, Any]]:
    """Return what comes up to a seq of the run."""
    told = [await one.take()]
    while told[-1].get("seq", 0) < seq:
        told.append(await one.take())
    return told


async def _doomed(one: Device, power: Power, server: Running) -> list[dict[str, Any]]:
    """Invoke, and return what a device is told of the run, of which the last words are not safe."""
    await one.invoke()
    told = await _until(one, 20)
    power.note(server)
    return told + await _until(one, told[-1]["seq"] + 60)


def _kept(told: list[dict[str, Any]]) -> list[str]:
    """Return the ids of the events that a device has which does what it is told."""
    kept: list[dict[str, Any]] = []
    for message in told:
        if message["type"] == "log_reset":
            kept = [one for one in kept if one["seq"] <= message["after_seq"]]
        elif "seq" in message:
            kept.append(message)
    return [message["event_id"] for message in kept]


async def _log(url: str, run_id: str) -> list[str]:
    """Return the ids of those events of a run's log that devices are sent."""
    _, page = await call(url, "GET", f"/v1/runs/{run_id}/events?limit=1000")
    assert not page["has_more"]
    sent = PUSHED | {"agent_invoke_retrying"}
    return [event["event_id"] for event in page["events"] if event["type"] in sent]


def _resets(told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [message for message in told if message["type"] == "log_reset"]


async def test_devices_that_stay_go_back_with_the_log(
    start_server: Started, start_ingress: Started, tmp_path: Path
) -> None:
    first, power = start_server(), Power(tmp_path)
    running = start_ingress(first.url)
    async with _agent(first.url), device(running, session_id="stays") as one:
        told = await _doomed(one, power, first)
        power.fail(first)
        second = start_server(HTTP_PORT=first.url.rpartition(":")[2])
        told += await _until(one, told[-1]["seq"] + 20)
        run_id = told[0]["run_id"]
        for entrance in (running, start_ingress(second.url)):
            async with device(entrance, session_id="stays") as late:
                at = (await late.take())["seq"]
            async with device(entrance, session_id="stays", cursor=late.ack["cursor"]) as back:
                again = await back.take()
                assert (again["type"], again["seq"]) == ("delta", at), "it was of the new log"
        told += await one.take_run()
    log = await _log(second.url, run_id)
    lost = {message["event_id"] for message in told if "seq" in message} - set(log)
    assert len(lost) >= 20, "devices had seen what is gone"
    assert _kept(told) == log
    [reset] = _resets(told)
    assert reset["run_id"] == run_id
    assert reset.keys() == {"type", "run_id", "after_seq", "cursor"}


@pytest.mark.parametrize("by", ["cursor", "older cursor", "both"])
async def test_a_device_that_was_away_goes_back_with_the_log(
    start_server: Started, start_ingress: Started, tmp_path: Path, by: str
) -> None:
    first, power = start_server(), Power(tmp_path)
    running = start_ingress(first.url)
    async with _agent(first.url):
        async with device(running, session_id="away") as one:
            told = await _doomed(one, power, first)
            run_id = told[0]["run_id"]
            how: dict[str, Any] = {"cursor": one.ack["cursor"]}
            if by == "both":
                how["last_seq"] = {run_id: told[-1]["seq"]}
            if by == "cursor":
                async with device(running, session_id="away") as late:
                    seq = (await late.take())["seq"]
                how = {"cursor": late.ack["cursor"]}
                told += await _until(one, seq)
                told = [message for message in told if message["seq"] < seq]
        running.kill()
        power.fail(first)
        second = start_server(HTTP_PORT=first.url.rpartition(":")[2])
        there = start_ingress(second.url)
        async with device(there, session_id="away", **how) as back:
            rest = await back.take_run()
    log = await _log(second.url, run_id)
    assert {message["event_id"] for message in told} - set(log), "it had seen what is gone"
    assert rest[0]["type"] == "log_reset"
    assert len(_resets(rest)) == 1
    assert _kept(told + rest) == log
