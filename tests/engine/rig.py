"""The engine rig of the test kit, on a SQLite file."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from orchestrator.buses.local import LocalBus
from orchestrator.ports import Bus, Store
from orchestrator.stores.sqlite import open_store
from orchestrator.testing import engine_rig
from orchestrator.testing.engine_rig import Place, Rig, Script, ScriptedAgent, hang, say, until
from orchestrator.world import RealWorld

__all__ = ["Rig", "Script", "ScriptedAgent", "at", "hang", "running", "say", "until"]


def at(path: Path, bus: type[Bus] = LocalBus) -> Place:
    """Return the place of a SQLite file, with a new bus for each server."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[tuple[Store, Bus]]:
        store = await open_store(f"file:{path}", world=RealWorld())
        try:
            yield store, bus()
        finally:
            await store.close()

    return opened


@asynccontextmanager
async def running(
    path: Path, script: Script = say, *, bus: type[Bus] = LocalBus, **wanted: Any
) -> AsyncIterator[Rig]:
    """Run an engine on the database at `path` until the block ends."""
    async with engine_rig.running(at(path, bus), script, **wanted) as rig:
        yield rig
