"""An ingress that may be well, slow, hung or absent; it keeps what it was given."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ..processes import free_port
from .listening import listening
from .load import CUT

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


@dataclass
class Ingress:
    """Answers `POST /internal/send` after `delay_s`; while `hung` it reads and never answers."""

    delay_s: float = 0.0
    hung: bool = False
    port: int = field(default_factory=free_port)
    taken: defaultdict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    """The events that were answered with 200, by run, in the order of their arrival."""
    unanswered: int = 0
    _open: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def url(self) -> str:
        """Where it is, or would be."""
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        with suppress(*CUT):
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                body = msgspec.json.decode(await reader.readexactly(length))
                await self._answer(body, writer)
        self._open.discard(writer)

    async def _answer(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        if self.hung:
            self.unanswered += 1
            await asyncio.Event().wait()
        await asyncio.sleep(self.delay_s)
        event = body["event"]
        self.taken[event["run_id"]].append(event | {"session_id": body["session_id"]})
        writer.write(OK)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["Ingress"]:
        """Be there for as long as the context is open."""
        async with listening(self._serve, self.port):
            yield self

    def break_off(self) -> None:
        """Cut every connection, as a restart would."""
        for writer in self._open:
            writer.transport.abort()

    def whole(self, run_ids: list[str]) -> bool:
        """Return whether the end of every run has arrived."""
        return all(
            self.taken[run_id] and self.taken[run_id][-1]["type"] in ("done", "error")
            for run_id in run_ids
        )
