"""Callers that also read runs which somebody else started, maybe at another server."""

from bench.load.callers import Callers
from bench.load.control import Commands, obey


class Followers(Callers):
    """Callers, and readers who call nobody."""

    async def follow(self, run_ids: list[str]) -> None:
        """Read runs, each on a connection of its own; return once all have something to read."""
        for run_id in run_ids:
            caller = await self._connect("")
            self._open.append(caller)
            caller.read(run_id.encode())
        for caller in self._open:
            await caller.streaming


async def _begin() -> Commands:
    followers = Followers()
    names = ("target", "follow", "reset", "seen", "close")
    return {name: getattr(followers, name) for name in names}


if __name__ == "__main__":
    obey(_begin)
