"""What the engine keeps to on every store and bus; a driver's tests subclass it.

They hand in one fixture, `place`: what opens a store and a bus for the same database, any number
of times. A store that several servers may open at once keeps SharedEngineContract, too.
"""

from orchestrator.testing.engine_families_contract import TheFamilies
from orchestrator.testing.engine_readers_contract import TheIngress, TheReaders, TheSessionStreams
from orchestrator.testing.engine_runs_contract import TheEnds, TheKeys, TheLife, TheSessions
from orchestrator.testing.engine_servers_contract import SharedEngineContract, TheHeirs
from orchestrator.testing.engine_sessions_contract import TheBusySessions

__all__ = ["EngineContract", "SharedEngineContract"]


class EngineContract(
    TheLife,
    TheSessions,
    TheBusySessions,
    TheKeys,
    TheEnds,
    TheFamilies,
    TheReaders,
    TheSessionStreams,
    TheIngress,
    TheHeirs,
):
    """All of it, one server at a time."""
