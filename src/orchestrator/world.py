"""The real clock, randomness and names."""

import asyncio
import secrets
import socket
import time


class RealWorld:
    """The World of a running server."""

    def now(self) -> int:
        """Return milliseconds UTC of this machine's clock."""
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        """Return seconds of a clock that never jumps."""
        return time.monotonic()

    def noise(self, size: int) -> bytes:
        """Return bytes fit for keys and ids."""
        return secrets.token_bytes(size)

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)

    async def resolve(self, host: str, port: int) -> list[tuple[int, str]]:
        """Return the (family, address) pairs of a name as the system orders them (RFC 6724).

        Raises OSError (socket.gaierror) when the name leads nowhere.
        """
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        pairs = [(int(family), str(sockaddr[0])) for family, _, _, _, sockaddr in found]
        return list(dict.fromkeys(pairs))
