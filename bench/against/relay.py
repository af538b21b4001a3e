"""A raw relay: the reader's bytes to the agent, the agent's bytes to the reader, nothing else."""

import asyncio
import sys
from typing import Any, Final

import uvloop

AGENT: Final = int(sys.argv[2])


class Half(asyncio.Protocol):
    """One of the two connections; each writes what it receives to the other."""

    def __init__(self, other: "Half | None" = None) -> None:
        self.other = other
        self.transport: asyncio.Transport | None = None
        self._early: list[bytes] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        if self.other is not None:
            self.other.meet(self)

    def meet(self, other: "Half") -> None:
        """Begin to relay."""
        self.other = other
        for data in self._early:
            self.data_received(data)

    def data_received(self, data: bytes) -> None:
        if self.other is None or self.other.transport is None:
            self._early.append(data)
        else:
            self.other.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()

    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.resume_reading()


async def _serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:

        def accept() -> Half:
            reader = Half()
            tasks.create_task(_dial(reader))
            return reader

        server = await loop.create_server(accept, "127.0.0.1", port, backlog=4096)
        await server.serve_forever()


async def _dial(reader: Half) -> None:
    loop = asyncio.get_running_loop()
    await loop.create_connection(lambda: Half(reader), "127.0.0.1", AGENT)


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
