"""The JavaScript SDK as a device of a real ingress, over a line that breaks."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ..fault.listening import listening
from ..fault.load import CUT, Agent, register
from ..processes import ROOT, STOP_S, spawn, until
from ..sdk.test_js import node
from .rig import Started, pushed_of, seqs

__all__ = ["node"]

DEVICE = """
import { connect } from "%s";
const ingress = await connect(process.argv[2], {});
ingress.invoke("load", "Hello");
for await (const message of ingress) {
  console.log(JSON.stringify(message));
  if (message.type === "done") break;
}
ingress.close();
"""


@dataclass
class Line:
    """Passes bytes on to a port; each of the first connections breaks after so many of them."""

    port: int
    breaks: int
    answer: int = 3000
    lines: int = 0
    lost: int = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[int]:
        async with listening(self._pass_on, 0) as port:
            yield port

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.lines += 1
        number = self.lines
        with suppress(*CUT):
            there, back = await asyncio.open_connection("127.0.0.1", self.port)
            try:
                async with asyncio.timeout(STOP_S), asyncio.TaskGroup() as tasks:
                    up = tasks.create_task(self._copy(reader, back, number == 1))
                    left = self.answer if number <= self.breaks else None
                    await self._down(there, writer, left)
                    up.cancel()
            finally:
                back.transport.abort()
        writer.transport.abort()

    async def _down(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, left: int | None
    ) -> None:
        while (left is None or left > 0) and (piece := await reader.read(500)):
            writer.write(piece)
            left = None if left is None else left - len(piece)

    async def _copy(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, first: bool
    ) -> None:
        """Pass on what a device says; of the first connection only handshake and hello."""
        with suppress(*CUT):
            said = 0
            while piece := await reader.read(1 << 16):
                said += 1
                if first and said > 2:
                    self.lost += 1
                    writer.transport.abort()
                    return
                writer.write(piece)


async def test_the_javascript_sdk_goes_on_over_a_line_that_breaks(
    server: str, start_ingress: Started, node: str, tmp_path: Path
) -> None:
    running = start_ingress(server)
    port = int(running.url.rpartition(":")[2])
    script, log = tmp_path / "device.mjs", tmp_path / "device.log"
    script.write_text(DEVICE % (ROOT / "sdk" / "js" / "ingress.mjs").as_uri())
    line = Line(port, breaks=8)
    async with Agent(deltas=600, pause_s=0.05).serving() as agent_url, line.open() as broken:
        await register(server, agent_url)
        url = f"ws://127.0.0.1:{broken}/ws"
        device = spawn([node, str(script), url], tmp_path, log, {})
        await asyncio.to_thread(until, lambda: line.lines > line.breaks, "it came again", 30)
        heard = len(_told(log))
        await asyncio.to_thread(until, lambda: len(_told(log)) > heard, "it goes on", 30)
        await asyncio.to_thread(running.kill)
        await asyncio.to_thread(start_ingress, server, WS_PORT=str(port))
        assert await asyncio.to_thread(device.wait, STOP_S) == 0, log.read_text()
    assert line.lost == 1, "what it asked was lost on its way"
    assert line.lines > line.breaks + 1, "it came to the ingress that was started again"
    told = _told(log)
    run_id = told[0]["run_id"]
    assert {message["run_id"] for message in told} == {run_id}, "it was asked once"
    assert seqs(told, run_id) == await pushed_of(server, run_id)


def _told(log: Path) -> list[dict[str, Any]]:
    lines = log.read_bytes().splitlines(keepends=True)
    return [msgspec.json.decode(line) for line in lines if line.endswith(b"\n")]
