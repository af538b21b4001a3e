"""A server process: the real engine, the wires around it, and the three ways in which it stops."""

import asyncio
import contextvars
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

from orchestrator.buses.local import LocalBus
from orchestrator.core.errors import OrchestratorError, StorageFull, Unavailable
from orchestrator.core.ops import Op
from orchestrator.engine import Engine, Outside
from orchestrator.testing.open_egress import OpenEgress
from orchestrator.testing.plain_box import PlainBox
from orchestrator.testing.simulator.agent import SimAgent
from orchestrator.testing.simulator.flaws import CarelessTails
from orchestrator.testing.simulator.loop import OWNER
from orchestrator.testing.simulator.push import SimPush
from orchestrator.testing.simulator.stage import Gone, Stage
from orchestrator.testing.simulator.store import ModelStore

T = TypeVar("T")
PATIENCE_S: Final = 5.0
"""How long a caller waits for an answer."""
DYING_TURNS: Final = 1000
STOPPING_S: Final = 7.0
"""How long a drain may take beyond its drain time."""


class Road:
    """The way from a server to the store: `cut` is how it fails, `dead` that the server is."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.cut: str | None = None
        self.dead = False
        self._mended = asyncio.Event()
        self._parked: list[Callable[[OrchestratorError | None], None]] = []

    async def write(self, ops: Sequence[Op]) -> None:
        """Pass before a change is applied."""
        await self.ask()
        if (error := self._mishap(ops)) is not None:
            await asyncio.sleep(self._stage.weather.between(0.001, 0.02))
            raise error

    def send(self, op: Op, then: Callable[[OrchestratorError | None], None]) -> None:
        """Do the same for who does not wait."""
        if self.dead:
            return
        if self.cut == "hangs":
            self._parked.append(then)
            return
        error = self._lost() or self._mishap((op,))
        if error is None:
            then(None)
            return
        delay = self._stage.weather.between(0.001, 0.02)
        asyncio.get_running_loop().call_later(delay, self._fail, error, then)

    async def ask(self) -> None:
        """Pass before something is read."""
        if self.dead:
            raise asyncio.CancelledError
        if self._stage.plan.yields and self._stage.weather.hit(self._stage.plan.yields):
            await asyncio.sleep(0)
        if self.cut == "hangs":
            await self._mended.wait()
        elif (error := self._lost() or self._deafness()) is not None:
            await asyncio.sleep(self._stage.weather.between(0.001, 0.02))
            raise error

    def break_down(self, how: str) -> None:
        """Be cut: every call `hangs` or `fails` from now on."""
        self._mended.clear()
        self.cut = how

    def mend(self) -> None:
        """Let through what comes, and what hangs."""
        self.cut = None
        self._mended.set()
        parked, self._parked = self._parked, []
        for then in parked:
            if not self.dead:
                then(None)

    def _fail(
        self, error: OrchestratorError, then: Callable[[OrchestratorError | None], None]
    ) -> None:
        if not self.dead:
            then(error)

    def _lost(self) -> Unavailable | None:
        if self.cut != "fails":
            return None
        self._stage.fault("store_lost")
        return Unavailable("the store cannot be reached")

    def _deafness(self) -> Unavailable | None:
        if self._stage.mood() != "deaf" or not self._stage.weather.hit(0.3):
            return None
        self._stage.fault("store_deaf")
        return Unavailable("the store does not answer")

    def _mishap(self, ops: Sequence[Op]) -> Unavailable | None:
        mood = self._stage.mood()
        if mood is None or not self._stage.weather.hit(0.7):
            return None
        if mood == "unavailable":
            self._stage.fault("store_unavailable")
            return Unavailable("the store is away")
        if mood == "full" and ops:
            self._stage.fault("storage_full")
            return StorageFull("the disk is full")
        return None


class Server:
    """One process from its start to its end; a new one begins with nothing but the store."""

    def __init__(self, stage: Stage, number: int, bus: LocalBus) -> None:
        self.name = f"server {number}"
        self.up = False
        self.road = Road(stage)
        self.alive = True
        self.was_cut = False
        self._stage = stage
        self._leaving = asyncio.Event()
        self._tasks: list[asyncio.Task[Any]] = []
        self._context = contextvars.copy_context()
        self._context.run(OWNER.set, self._tasks)
        self._handlers: asyncio.TaskGroup | None = None
        outside = self._outside(bus)
        self.engine = Engine(outside, stage.plan.settings)
        if stage.flaw == "resume":
            self.engine.tails = CarelessTails(outside.store, outside.bus)

    def _outside(self, bus: LocalBus) -> Outside:
        stage = self._stage
        return Outside(
            store=ModelStore(stage.world, stage.disk, self.road),
            bus=bus,
            world=stage.world,
            agents={"native": SimAgent(stage, self)},
            egress=OpenEgress(),
            box=PlainBox(),
            signer=PlainBox(),
            push=SimPush(stage) if stage.plan.pushes else None,
        )

    @property
    def healthy(self) -> bool:
        """Return whether nothing has happened to it that takes its runs away."""
        hurt = self.road.dead or self.was_cut or self._leaving.is_set()
        return self.alive and not hurt and self._stage.leases_hold

    async def live(self) -> None:
        """Run until it is drained, killed, or ends by itself, which it must not."""
        async with asyncio.TaskGroup() as tasks:
            await asyncio.wait({tasks.create_task(self._root(), context=self._context)})

    async def _root(self) -> None:
        self._stage.note(self.name, "starts")
        try:
            async with asyncio.TaskGroup() as self._handlers:
                await self._serve()
        except Exception as error:  # noqa: BLE001  # the border of the process
            if not self.road.dead:
                self._stage.accuse(f"{self.name} died of {told(error)}")
        finally:
            self.up = self.alive = False
            self._stage.note(self.name, "is gone")

    async def _serve(self) -> None:
        try:
            async with self.engine.running():
                self.up = True
                self._stage.up.set()
                await self._leaving.wait()
        finally:
            self.up = False
            self._hang_up()

    def _hang_up(self) -> None:
        for task in self._tasks:
            if task.get_name() == "handler":
                task.cancel()

    async def kill(self) -> None:
        """Stop at once: whatever still runs on its way out reaches nobody."""
        self._stage.note(self.name, "is killed")
        self.up = False
        self.road.dead = True
        for _ in range(DYING_TURNS):
            if not (pending := self._pending()):
                return
            for task in pending:
                task.cancel()
            await asyncio.sleep(0)
        self._stage.accuse(f"{self.name} does not die: {self._pending()}")

    def _pending(self) -> "list[asyncio.Task[Any]]":
        return [task for task in self._tasks if not task.done()]

    async def drain(self) -> None:
        """Stop as SIGTERM does; it must be over in time."""
        self._stage.note(self.name, "drains")
        self._leaving.set()
        limit = self._stage.plan.settings.drain_timeout_ms / 1000 + STOPPING_S
        with suppress(TimeoutError):
            async with asyncio.timeout(limit):
                while pending := self._pending():
                    await asyncio.wait(pending)
        if self._pending() and not self.road.dead and not self.was_cut:
            self._stage.accuse(f"{self.name} is not drained after {limit} s")

    # ------------------------------------------------------------ its callers

    async def call(self, work: Callable[[Engine], Awaitable[T]]) -> T:
        """Have the server do `work`; raises Gone when no answer comes."""
        reply: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        serving = self.handle(self._answer(work, reply))
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await reply
        except TimeoutError:
            self._stage.note(self.name, "does not answer" if not serving.done() else "is silent")
            raise Gone from None

    def handle(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Begin to serve a request; raises Gone when nobody listens."""
        if not self.up or self._handlers is None:
            work.close()
            raise Gone
        return self._handlers.create_task(
            self._guarded(work), name="handler", context=self._context
        )

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except OrchestratorError as error:
            self._stage.note(self.name, f"breaks off an answer: {told(error)}")
        except Exception as error:  # noqa: BLE001  # a border of the server: it would be a 500
            self._stage.accuse(f"{self.name} answers with {told(error)}")

    async def _answer(
        self, work: Callable[[Engine], Awaitable[T]], reply: "asyncio.Future[T]"
    ) -> None:
        try:
            result = await work(self.engine)
        except OrchestratorError as error:
            if not reply.done():
                reply.set_exception(error)
        else:
            if not reply.done():
                reply.set_result(result)
        finally:
            if not reply.done():
                reply.set_exception(Gone())


def told(error: BaseException) -> str:
    """Return an error, and where in the engine it came out."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    frames = traceback.extract_tb(error.__traceback__)
    inside = [f"{Path(f.filename).stem}.{f.name}" for f in frames if "/engine/" in f.filename]
    return f"{type(error).__name__}: {error} ({' < '.join(reversed(inside[-3:]))})"
