"""Looks for what nobody told: once a second, where hints may be lost, at all that is waited for."""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from orchestrator.core.errors import Unavailable
from orchestrator.core.records import Run
from orchestrator.core.states import ENDED, OPEN
from orchestrator.engine.ledger import ENDS, Ledger
from orchestrator.ports import Bus, Hint, Where
from orchestrator.telemetry import get_logger

log = get_logger(__name__)

LOOK_S: Final = 1.0
_AT_ONCE: Final = 500
_ENDED_MS: Final = 10_000
"""How long after its end a run of a session is still looked at."""
_RUN, _SESSION, _RUNS = "run:", "session:", "runs"


class Lookout:
    """Compares heads with what was last seen, and tells those who listen in this process.

    `driven` are the runs that are driven here; `ended` is told of those that somebody else ended,
    and `let_go` of every end that a hint brings, which is sooner.
    """

    def __init__(
        self,
        ledger: Ledger,
        bus: Bus,
        driven: Callable[[], Iterable[str]],
        ended: Callable[[Run], None],
        let_go: Callable[[str], None],
    ) -> None:
        self._ledger = ledger
        self._bus = bus
        self._driven = driven
        self._ended = ended
        self._let_go = let_go
        self._seen: dict[str, int] = {}
        self._over: set[str] = set()
        ledger.on_ended(self._note)

    async def run(self) -> None:
        """Look until cancelled; on a bus that loses nothing there is nothing to look for."""
        while not self._bus.certain:
            await self._ledger.world.sleep(LOOK_S)
            try:
                await self.look()
            except Unavailable as error:
                log.info("lookout_waits", error=error.message)

    async def listen(self) -> None:
        """Hear of ends until cancelled; on a bus that loses nothing the engine knows by itself."""
        if self._bus.certain:
            return
        with self._bus.subscribe(ENDS) as mailbox:
            while True:
                for hint in await mailbox.take():
                    self._let_go(hint.run_id)

    async def look(self) -> None:
        """Look once."""
        subjects = self._bus.subjects()
        driven = set(self._driven())
        over = set(self._over)
        wanted = driven | {s.removeprefix(_RUN) for s in subjects if s.startswith(_RUN)}
        if _RUNS in subjects:
            wanted |= over
        found = {run.run_id: run for run in await self._runs(wanted)}
        for run in await self._of_sessions(s for s in subjects if s.startswith(_SESSION)):
            found[run.run_id] = run
        seen, self._seen = self._seen, {name: run.head for name, run in found.items()}
        self._over -= over
        for run in found.values():
            if seen.get(run.run_id) != run.head:
                self._tell(run)
            if run.status in ENDED and run.run_id in driven:
                self._ended(run)

    def _note(self, run: Run) -> None:
        """Look once more at a run that ended here: it may be over before any look."""
        if not self._bus.certain:
            self._over.add(run.run_id)

    def _tell(self, run: Run) -> None:
        hint = Hint(run.run_id, run.head)
        for subject in (f"{_RUN}{run.run_id}", f"{_SESSION}{run.tenant}/{run.session_id}", _RUNS):
            self._bus.deliver(subject, hint)

    async def _runs(self, run_ids: set[str]) -> list[Run]:
        return await self._all("run_id", sorted(run_ids))

    async def _of_sessions(self, subjects: Iterable[str]) -> list[Run]:
        """Return the runs of sessions that are open, or were a moment ago."""
        sessions: dict[str, list[str]] = {}
        for subject in subjects:
            tenant, _, session_id = subject.removeprefix(_SESSION).partition("/")
            sessions.setdefault(tenant, []).append(session_id)
        since = self._ledger.store.now() - _ENDED_MS
        found: list[Run] = []
        for tenant, names in sessions.items():
            own: Where = ("tenant", "=", tenant)
            found += await self._all("session_id", names, own, ("status", "in", sorted(OPEN)))
            found += await self._all("session_id", names, own, ("ended_at", ">", since))
        return found

    async def _all(self, column: str, names: Sequence[str], *where: Where) -> list[Run]:
        found: list[Run] = []
        for at in range(0, len(names), _AT_ONCE):
            part = names[at : at + _AT_ONCE]
            found += await self._ledger.store.find(
                Run, (column, "in", part), *where, limit=_AT_ONCE * 20
            )
        return found
