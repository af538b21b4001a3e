"""The real clock, randomness, names and signals."""

import asyncio
import secrets
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_BOOT_GRAIN_S: Final = 60.0
_POOL_BYTES: Final = 4096
_STOPS: Final = (signal.SIGTERM, signal.SIGINT)


class RealWorld:
    """The World of a running server."""

    def __init__(self) -> None:
        self._pool = b""
        self._drawn = 0

    def now(self) -> int:
        """Return milliseconds UTC of this machine's clock."""
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        """Return seconds of a clock that never jumps."""
        return time.monotonic()

    def boot(self) -> str:
        """Return the kernel's id of its own start; elsewhere than on Linux, the time of it."""
        if _BOOT_ID.exists():
            return _BOOT_ID.read_text().strip()
        return str(round((time.time() - time.monotonic()) / _BOOT_GRAIN_S))

    def noise(self, size: int) -> bytes:
        """Return bytes fit for keys and ids; the system is asked for many at a time."""
        start, self._drawn = self._drawn, self._drawn + size
        if self._drawn > len(self._pool):
            self._pool = secrets.token_bytes(max(size, _POOL_BYTES))
            start, self._drawn = 0, size
        return self._pool[start : self._drawn]

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


@asynccontextmanager
async def stop_signals(stop: Callable[[], None]) -> AsyncIterator[None]:
    """Call `stop` at each SIGTERM and SIGINT; behind the context, where a process ends, neither is
    heard: one more must not kill what is about to end well.
    """
    loop = asyncio.get_running_loop()
    for number in _STOPS:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
        for number in _STOPS:
            loop.remove_signal_handler(number)  # from here on a signal would kill
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
