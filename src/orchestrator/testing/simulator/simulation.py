"""One simulation from its seed to its verdict."""

import asyncio
import gc
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from orchestrator.buses.local import LocalBus
from orchestrator.core.states import ENDED
from orchestrator.ports import Hint
from orchestrator.testing.simulator import checks
from orchestrator.testing.simulator.chance import Chance
from orchestrator.testing.simulator.loop import Stuck
from orchestrator.testing.simulator.people import Caller
from orchestrator.testing.simulator.plan import AGENTS, Flaw, Incident, Plan, drawn
from orchestrator.testing.simulator.readers import SessionReader
from orchestrator.testing.simulator.server import Server, told
from orchestrator.testing.simulator.stage import Stage

CALM_S: Final = 40.0
"""How long after the last fault everything may take to come to its end."""
_SOON_S: Final = 0.3
_SETTLE_S: Final = 8.0
"""How long after the last run's end readers and pushes may take; an ingress is tried each 5 s."""


class Result(msgspec.Struct, frozen=True):
    """What one seed led to: nothing is `wrong`, or the promises that were broken."""

    seed: int
    wrong: list[str]
    faults: Counter[str]
    trace: list[tuple[float, str, str]]
    runs: int
    turns: int

    def told(self) -> Iterable[str]:
        """Return the trace in lines for people: virtual time, who, what."""
        for at, who, what in self.trace:
            yield f"{at:9.4f}  {who:<22} {what}"


def simulate(seed: int, flaw: Flaw | None = None, replicas: int | None = None) -> Result:
    """Play the simulation of a seed; odd seeds end in a calm in which everything must end well.

    `flaw` plants a fault that the checks must find; `replicas` is how many servers there are.
    """
    chance = Chance(str(seed))
    plan = drawn(chance.of("plan"), liveness=seed % 2 == 1, replicas=replicas)
    stage = Stage(chance, plan, flaw)
    gc.disable()  # what it finds, and when, would depend on the seeds before
    try:
        stage.loop.run_until_complete(Play(stage).perform())
    except Stuck as error:
        stage.accuse(f"the simulation is stuck: {error}")
    except Exception as error:  # noqa: BLE001  # the border of a simulation
        stage.accuse(f"the simulation broke off: {told(error)}")
    finally:
        gc.enable()
    after = ", ".join(stage.happened) or "nothing"
    wrong = [f"{what} (after {after})" for what in (*stage.wrong, *stage.loop.troubles)]
    runs = len(stage.runs())
    return Result(seed, wrong, stage.faults, stage.trace, runs, stage.loop.turns)


class ThinBus(LocalBus):
    """A bus that keeps its one promise only: a hint says that there is something to look at."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self._stage = stage
        self._chance = stage.chance.of("bus")

    def publish(self, subject: str, hint: Hint) -> None:
        """Deliver a hint whole, without its events, late, or twice."""
        stage, chance = self._stage, self._chance
        if not chance.hit(stage.plan.thin):
            super().publish(subject, hint)
            return
        way = chance.pick(("bare", "late", "twice"))
        stage.fault(f"hint_{way}")
        if way == "bare":
            super().publish(subject, Hint(hint.run_id, hint.head))
            return
        stage.loop.call_later(chance.between(0, 0.03), super().publish, subject, hint)
        if way == "twice":
            super().publish(subject, hint)


class Play:
    """The course of one simulation."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._plan: Plan = stage.plan
        self._chance = stage.chance.of("incidents")
        self._bus = ThinBus(stage)
        self._closing = False
        self._started = 0

    async def perform(self) -> None:
        """Play faults, then the calm if there is one, and judge what is left."""
        stage = self._stage
        for agent in AGENTS:
            stage.disk.tables.put(agent)
        stage.disk.tables.take()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._plan.replicas):
                tasks.create_task(self._keep())
            watching = [tasks.create_task(reader.follow()) for reader in self._session_readers()]
            acting = tasks.create_task(self._act())
            for incident in self._plan.incidents:
                await self._until(incident.at)
                await self._happen(incident, tasks)
            await self._until(self._plan.until)
            if self._plan.liveness:
                await self._calm(acting)
            acting.cancel()
            for task in watching:
                task.cancel()
            await self._close()
        checks.judge(stage)

    def _session_readers(self) -> list[SessionReader]:
        stage = self._stage
        names = [f"s{n}" for n in range(1, self._plan.sessions + 1)]
        chance = stage.chance.of("session readers")
        return [SessionReader(stage, name, chance.of(name)) for name in names if chance.hit(0.4)]

    async def _act(self) -> None:
        async with asyncio.TaskGroup() as people:
            for number in range(1, self._plan.callers + 1):
                people.create_task(Caller(self._stage, number).act())

    async def _until(self, at: float) -> None:
        await asyncio.sleep(max(0.0, at - self._stage.loop.time()))

    # ------------------------------------------------------------ servers

    async def _keep(self) -> None:
        """Start a server, and another one whenever it is gone, as a supervisor does."""
        stage = self._stage
        while not self._closing:
            if self._plan.replicas == 1:
                stage.disk.reopened()
            self._started += 1
            server = Server(stage, self._started, self._bus)
            stage.servers = [s for s in stage.servers if s.alive] + [server]
            await server.live()
            await asyncio.sleep(self._chance.between(0.001, 0.3))

    async def _close(self) -> None:
        self._closing = True
        for server in list(self._stage.servers):
            if self._plan.liveness:
                await server.drain()
            else:
                await server.kill()

    # ------------------------------------------------------------ incidents

    async def _happen(self, incident: Incident, tasks: asyncio.TaskGroup) -> None:
        stage = self._stage
        up = [server for server in stage.servers if server.up]
        if not up:
            return
        victim = self._chance.pick(up)
        stage.happened.append(incident.kind)
        if incident.kind in {"kill", "power"} and self._chance.hit(0.6):
            await self._until_it_hurts()
        match incident.kind:
            case "kill":
                stage.fault("kill")
                await victim.kill()
            case "power":
                await self._lose_power()
            case "drain":
                stage.fault("drain")
                tasks.create_task(victim.drain())
            case "cut":
                tasks.create_task(self._cut(incident.lasts))
            case "jump_forward" | "jump_back":
                self._jump(incident.kind)

    async def _until_it_hurts(self) -> None:
        """Wait for a commit that is not on the disk yet, if one comes soon."""
        loop, disk = self._stage.loop, self._stage.disk
        end = loop.time() + _SOON_S
        while not disk.loose and loop.time() < end:  # noqa: ASYNC110  # nobody is told of it
            await asyncio.sleep(0.001)
        await asyncio.sleep(self._chance.between(0, 0.001))

    async def _lose_power(self) -> None:
        stage = self._stage
        stage.fault("power_loss")
        stage.world.boots += 1
        for server in list(stage.servers):
            await server.kill()
        kept = self._chance.whole(0, stage.disk.loose)
        before = {run_id: len(log) for run_id, log in stage.disk.tables.logs.items()}
        if lost := stage.disk.lose(kept):
            stage.fault("power_loss_took_commits")
            stage.note("the machine", f"loses power, and {lost} commits with it")
        for run_id, length in before.items():
            left = len(stage.disk.tables.log(run_id))
            if left < length:
                stage.cut_back[run_id] = min(left, stage.cut_back.get(run_id, left))
        stage.over = {
            run.run_id: at
            for run in stage.runs()
            if (at := stage.over.get(run.run_id)) and run.status in ENDED
        }
        for reader in stage.readers:
            reader.lost_power()

    async def _cut(self, lasts: float) -> None:
        stage = self._stage
        await self._come(lambda: any(call.closed is None for call in stage.calls), 1.0)
        busy = [call.server for call in stage.calls if call.closed is None and call.server.up]
        victim = self._chance.pick(busy) if busy else await stage.server()
        how = self._chance.pick(("hangs", "fails"))
        victim.road.break_down(how)
        victim.was_cut = True
        stage.fault(f"store_{how}")
        stage.note(victim.name, f"is cut off from the store: every call {how}")
        await asyncio.sleep(lasts)
        stage.note(victim.name, "reaches the store again")
        victim.road.mend()

    def _jump(self, kind: str) -> None:
        stage = self._stage
        forward = kind == "jump_forward"
        jump = self._chance.whole(1_000, 7_200_000) * (1 if forward else -1)
        stage.fault(f"clock_{kind}")
        stage.note("the machine", f"its clock jumps by {jump} ms")
        stage.world.jumped_ms += jump
        if self._plan.replicas > 1:
            stage.leases_hold = False

    # ------------------------------------------------------------ the calm

    async def _calm(self, acting: "asyncio.Task[None]") -> None:
        stage = self._stage
        stage.calm = True
        stage.calmed.set()
        stage.note("the weather", "is calm from now on")
        # A cut may end this late, and what hung in the server is carried out then: maybe a new run.
        await asyncio.sleep(1)
        await asyncio.wait({acting}, timeout=CALM_S)
        if not acting.done():
            stage.accuse(f"after {CALM_S} s of calm some callers and readers are not done")
        ended = await self._come(lambda: all(r.status in ENDED for r in stage.runs()), CALM_S)
        if not ended:
            open_runs = [stage.name(r.run_id) for r in stage.runs() if r.status not in ENDED]
            stage.accuse(f"after {CALM_S} s of calm these are still open: {open_runs}")
        await self._come(lambda: not checks.waiting(stage), _SETTLE_S)
        stage.wrong += checks.waiting(stage)

    async def _come(self, condition: Callable[[], bool], limit: float) -> bool:
        end = self._stage.loop.time() + limit
        while not condition():
            if self._stage.loop.time() > end:
                return False
            await asyncio.sleep(0.1)
        return True
