"""A World whose clock stands still until a test moves it, and whose noise repeats."""

import asyncio
import hashlib


class FakeWorld:
    """`ports.World` with time and randomness of its own; names lead to loopback."""

    def __init__(self, now: int = 1_800_000_000_000, seed: int = 0, boot_id: str = "boot") -> None:
        self.time = now
        self.boot_id = boot_id
        self._start = now
        self._drawn = 0
        self._seed = seed

    def now(self) -> int:
        """Return the milliseconds that a test has set."""
        return self.time

    def monotonic(self) -> float:
        """Return seconds since the beginning."""
        return (self.time - self._start) / 1000

    def boot(self) -> str:
        """Return the name that a test has given to this run of the machine."""
        return self.boot_id

    def noise(self, size: int) -> bytes:
        """Return the next bytes of a sequence that the seed decides."""
        self._drawn += 1
        text = f"{self._seed}:{self._drawn}".encode()
        return hashlib.shake_128(text).digest(size)

    async def sleep(self, seconds: float) -> None:
        """Let others go on; fake time only moves when a test moves it."""
        del seconds
        await asyncio.sleep(0)

    async def resolve(self, host: str, port: int) -> list[tuple[int, str]]:
        """Return loopback."""
        del host, port
        return [(2, "127.0.0.1")]
