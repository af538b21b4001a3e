"""What libraries log: errors come out as log lines of ours, the rest stays quiet."""

import subprocess
import sys
from typing import Any

import msgspec
import pytest

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
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.replace("LEVEL", repr(level))],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
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
