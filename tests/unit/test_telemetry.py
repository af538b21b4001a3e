"""Log lines: what they carry, when they are written, and what libraries have to say."""

import subprocess
import sys
from typing import Any

import msgspec
import pytest

from orchestrator.core.trace import of_run

SCRIPT = """
import asyncio, logging
from orchestrator import telemetry

telemetry.configure(LEVEL, terminal=False)
log = logging.getLogger("uvicorn.error")
log.info("Started server process")
log.warning("Invalid HTTP request received.")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("Exception in ASGI application")

async def main():
    asyncio.get_running_loop().call_soon(lambda: {}["gone"])
    await asyncio.sleep(0.01)

asyncio.run(main())
"""


def lines(level: str) -> list[dict[str, Any]]:
    return written(SCRIPT.replace("LEVEL", repr(level)))


def written(script: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return [msgspec.json.decode(line) for line in done.stderr.splitlines()]


@pytest.mark.parametrize("level", ["info", "warn", "error"])
def test_errors_of_libraries_are_told_at_every_level(level: str) -> None:
    asgi, callback = lines(level)
    assert (asgi["event"], asgi["module"], asgi["level"]) == (
        "library_said", "uvicorn.error", "error",
    )  # fmt: skip
    assert "ZeroDivisionError" in asgi["exception"]
    assert (callback["module"], "KeyError" in callback["exception"]) == ("asyncio", True)


def test_debug_tells_warnings_too() -> None:
    assert [line["level"] for line in lines("debug")] == ["warning", "error", "error"]


BOUND = """
import asyncio
from orchestrator import telemetry

telemetry.configure("info", terminal=False)
log = telemetry.get_logger("orchestrator.somewhere")

async def one(name):
    telemetry.bind(run_id=name, session_id="s" + name)
    log.info("begun")
    await asyncio.sleep(0)
    log.info("ended", run_id="said by hand")

async def main():
    with telemetry.bound(key_id="k1"):
        log.info("inside")
        with telemetry.bound(key_id="k2", agent_id="a"):
            log.info("deeper")
        log.info("inside")
    log.info("outside")
    with telemetry.bound(key_id="k3"):
        with telemetry.unbound():
            log.info("outside")
            asyncio.get_running_loop().call_soon(log.info, "begun_outside")
        await asyncio.sleep(0)
        log.info("inside")
    async with asyncio.TaskGroup() as tasks:
        for name in "12":
            tasks.create_task(one(name))
    log.info("outside")

asyncio.run(main())
"""
IDS = ("run_id", "session_id", "agent_id", "key_id")


def test_ids_are_on_every_line_below_and_on_no_other() -> None:
    told = [
        (line["event"], {name: line[name] for name in IDS if name in line})
        for line in written(BOUND)
    ]
    assert told == [
        ("inside", {"key_id": "k1"}),
        ("deeper", {"key_id": "k2", "agent_id": "a"}),
        ("inside", {"key_id": "k1"}),
        ("outside", {}),
        ("outside", {}),
        ("begun_outside", {}),
        ("inside", {"key_id": "k3"}),
        ("begun", {"run_id": "1", "session_id": "s1"}),
        ("begun", {"run_id": "2", "session_id": "s2"}),
        ("ended", {"run_id": "said by hand", "session_id": "s1"}),
        ("ended", {"run_id": "said by hand", "session_id": "s2"}),
        ("outside", {}),
    ]


SPANS = """
from orchestrator import telemetry
from orchestrator.core.trace import of_run
from orchestrator.testing.fake_world import FakeWorld

telemetry.configure(LEVEL, terminal=False)
world = FakeWorld()
with telemetry.span("fetch", world, tries=2) as span:
    span.at(of_run("run_1", None, None))
    span.add(found="x" * 1000, bytes_of_it=b"never shown")
    world.time += 1500
try:
    with telemetry.span("fetch", world):
        raise LookupError("with words that are not ours to tell")
except LookupError:
    pass
"""


def test_a_span_is_a_line_at_debug() -> None:
    good, bad = written(SPANS.replace("LEVEL", "'debug'"))
    place = of_run("run_1", None, None)
    assert good.pop("timestamp")
    assert good == {
        "event": "span_ended",
        "module": "telemetry.spans",
        "level": "debug",
        "span": "fetch",
        "outcome": "done",
        "seconds": 1.5,
        "trace_id": place.trace_id,
        "span_id": place.span_id,
        "tries": 2,
        "found": "x" * 256,
    }
    assert (bad["outcome"], bad["error"]) == ("failed", "LookupError")
    assert "not ours" not in str(bad)
    assert "trace_id" not in bad


def test_a_span_is_no_line_otherwise() -> None:
    assert written(SPANS.replace("LEVEL", "'info'")) == []
