"""The database's time: judged there in SQL, and known here to within half a round trip."""

from typing import Final, Protocol

from orchestrator.ports import World

NOW: Final = "coalesce({mark}::bigint, (extract(epoch FROM clock_timestamp()) * 1000)::bigint)"
"""The time in SQL: the database's own, unless a clock says otherwise."""
STALE_S: Final = 10.0
"""How long a measurement is preferred to one that took longer."""


class Clock(Protocol):
    """What time it is for this store."""

    def now(self) -> int:
        """Return milliseconds UTC."""
        ...

    def given(self) -> int | None:
        """Return what statements are told instead of the database's own time; None for nothing."""
        ...

    def heard(self, began: float, ended: float, told: int) -> None:
        """Note that the database said `told` between two moments of the monotonic clock."""
        ...


class DatabaseClock:
    """The database's clock, carried on by this machine's monotonic one between two answers.

    It is off by at most half of the round trip that it was measured with and what two quartzes
    drift in ten seconds. When the database's clock is set, this follows with the next answer.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._at = self._took = 0.0
        self._zero: float | None = None

    def now(self) -> int:
        """Return the database's time as it must be by now."""
        if self._zero is None:
            return self._world.now()
        return int(self._zero + self._world.monotonic() * 1000)

    def given(self) -> int | None:
        """Return None: the database has a clock."""
        return None

    def heard(self, began: float, ended: float, told: int) -> None:
        """Take an answer unless a recent one came back faster."""
        took = ended - began
        if self._zero is None or took <= self._took or ended - self._at > STALE_S:
            self._zero = told + 0.5 - (began + ended) * 500
            self._at, self._took = ended, took

    @property
    def error_s(self) -> float:
        """Return by how many seconds `now` may be off."""
        return self._took / 2


class WorldClock:
    """The clock of a world in place of the database's, for tests that turn its hands."""

    def __init__(self, world: World) -> None:
        self._world = world

    def now(self) -> int:
        """Return the world's time."""
        return self._world.now()

    def given(self) -> int | None:
        """Return the world's time, for statements."""
        return self._world.now()

    def heard(self, began: float, ended: float, told: int) -> None:
        """Ignore what the database says."""
