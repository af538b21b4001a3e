"""What everybody in a simulation shares: time, chance, the disk, the servers, and the notes."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import msgspec

from orchestrator.core.events import TERMINAL, LogEvent
from orchestrator.core.ops import Committed, Op, Outcome, Refused
from orchestrator.core.records import Run
from orchestrator.engine import Engine
from orchestrator.testing.simulator.chance import Chance
from orchestrator.testing.simulator.disk import Disk
from orchestrator.testing.simulator.loop import VirtualLoop
from orchestrator.testing.simulator.plan import START, Flaw, Mood, Plan

if TYPE_CHECKING:
    from orchestrator.testing.simulator.server import Server

T = TypeVar("T")


_TAKEN_OVER: Final = frozenset({"run_failed", "agent_invoke_retrying"})
_RESTARTED: Final = b'"orchestrator_restarted"'


class Gone(Exception):  # not an error: the wire was cut
    """The server vanished, or did not answer in time; what it did is unknown."""


class Call(msgspec.Struct):
    """One invocation as the agent saw it: `number` stands in every word of its answer."""

    number: int
    run_id: str
    session_id: str
    attempt: int
    server: "Server"
    messages: list[Any]
    opened: float
    root: bool = True
    in_turn: bool = True
    closed: float | None = None
    words: list[str] = []
    final: Any = None


class Promises(msgspec.Struct):
    """What callers were told: it must stay true whatever happens.

    `runs` are acknowledged, `answers` the runs that each (session, request id) led to, `ends` the
    final states that somebody saw.
    """

    runs: list[str] = []
    answers: dict[tuple[str, str], set[str]] = {}
    ends: dict[str, set[str]] = {}


class Reader(Protocol):
    """Somebody who reads along and remembers what was shown."""

    who: str

    def shown(self) -> dict[str, list[LogEvent]]:
        """Return what was shown, by run."""
        ...

    def lost_power(self) -> None:
        """Judge what was shown against what the disk kept, and go back to that."""
        ...


class SimWorld:
    """`ports.World` of the one machine; its clock jumps when it is told to."""

    def __init__(self, loop: VirtualLoop, chance: Chance) -> None:
        self._loop = loop
        self.noise = chance.bytes
        self.monotonic = loop.time
        self.jumped_ms = self.boots = 0

    def now(self) -> int:
        """Return milliseconds UTC."""
        return START + self.jumped_ms + int(self._loop.time() * 1000)

    def boot(self) -> str:
        """Return a name for this run of the machine."""
        return f"boot {self.boots}"

    async def sleep(self, seconds: float) -> None:
        """Wait in virtual time."""
        await asyncio.sleep(seconds)

    async def resolve(self, host: str, port: int) -> list[tuple[int, str]]:
        """Return loopback."""
        del host, port
        return [(2, "127.0.0.1")]


class Stage:
    """The shared state of one simulation; `wrong` holds what must never have happened."""

    def __init__(self, chance: Chance, plan: Plan, flaw: Flaw | None) -> None:
        self.chance = chance
        self.plan = plan
        self.flaw = flaw
        self.loop = VirtualLoop(  # type: ignore[abstract]  # it has what the engine needs
            chance.of("order").shuffle if plan.shuffled else None
        )
        self.world = SimWorld(self.loop, chance.of("noise"))
        self.weather = chance.of("weather")
        self.disk = Disk(
            self._sync_s, honest=flaw != "sync", guarded=flaw != "guard", told=self._told
        )
        self.calm = False
        self.calmed = asyncio.Event()
        self.over: dict[str, float] = {}
        self.servers: list[Server] = []
        self.up = asyncio.Event()
        self.calls: list[Call] = []
        self.promises = Promises()
        self.readers: list[Reader] = []
        self.pushed: dict[str, list[tuple[int, bytes]]] = {}
        self.cut_back: dict[str, int] = {}
        self.leases_hold = True
        self.faults: Counter[str] = Counter()
        self.happened: list[str] = []
        self.wrong: list[str] = []
        self.trace: list[tuple[float, str, str]] = []
        self._names: dict[str, str] = {}

    # ------------------------------------------------------------ notes

    def note(self, who: str, what: str) -> None:
        """Write a line of the trace."""
        self.trace.append((self.loop.time(), who, what))

    def fault(self, name: str) -> None:
        """Count a fault that really happened."""
        self.faults[name] += 1

    def accuse(self, what: str) -> None:
        """Note that a promise was broken, and when."""
        self.wrong.append(f"{self.loop.time():.3f} s: {what}")
        self.note("!!", what)

    def name(self, run_id: str) -> str:
        """Return a run's short name: runs are numbered as they come."""
        return self._names.setdefault(run_id, f"run {len(self._names) + 1}")

    def _told(self, op: Op, outcome: Outcome) -> None:
        if op.run_id is None:
            return
        match outcome:
            case Committed(events=events):
                for event in events:
                    self.note(self.name(op.run_id), f"#{event.seq} {event.type}")
                    if event.type in TERMINAL:
                        self.over[op.run_id] = self.loop.time()
                    if event.type in _TAKEN_OVER and _RESTARTED in event.data:
                        self._taken_over(op.run_id)
            case Refused(why=why):
                self.note(self.name(op.run_id), f"a write is refused ({why})")
                self.fault(f"refused_{why}")

    def opening(self, call: Call) -> None:
        """Judge a call of an agent against those that are still open."""
        if not self.leases_hold:
            return
        for other in self.calls:
            if other is call or other.closed is not None or other.session_id != call.session_id:
                continue
            if other.run_id in self.over:
                continue  # it has a second to be closed
            if other.run_id == call.run_id:
                self.accuse(f"calls {other.number} and {call.number} of one run are both open")
            elif other.in_turn and call.in_turn:
                self.accuse(f"calls {other.number} and {call.number} of one session are both open")

    def _taken_over(self, run_id: str) -> None:
        """Judge whether the server that a run is taken from is really gone."""
        for call in self.calls:
            if call.run_id == run_id and call.closed is None and call.server.healthy:
                self.accuse(f"{self.name(run_id)} is taken from {call.server.name}, which is well")

    # ------------------------------------------------------------ the disk's mood

    def mood(self) -> Mood | None:
        """Return what the disk is like now."""
        if self.calm or not self.plan.spells:
            return None
        now = self.loop.time()
        return next((s.mood for s in self.plan.spells if s.begin <= now < s.end), None)

    def gauges(self) -> dict[str, float]:
        """Return the sums of the servers' own gauges, which are 0 when nothing is left."""
        names = ("runs_open", "runs_in_flight")
        stats = [server.engine.stats() for server in self.servers if server.up]
        return {name: sum(one[name] for one in stats) for name in names}

    def _sync_s(self) -> float:
        if self.mood() != "slow":
            return self.weather.between(0, 0.004)
        self.fault("slow_sync")
        return self.weather.between(0.05, 0.4)

    # ------------------------------------------------------------ servers

    def runs(self) -> list[Run]:
        """Return every run there is, in order of acceptance."""
        return sorted(self.disk.tables.rows[Run].values(), key=lambda run: run.key)

    async def server(self) -> "Server":
        """Return a server that takes calls; waits for one."""
        while not (up := [server for server in self.servers if server.up]):
            self.up.clear()
            await self.up.wait()
        return up[0] if len(up) == 1 else self.chance.pick(up)

    async def ask(self, work: Callable[[Engine], Awaitable[T]]) -> T:
        """Call a server once. Raises Gone, or what the server answered."""
        return await (await self.server()).call(work)
