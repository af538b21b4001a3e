"""An event loop whose clock jumps from timer to timer: no socket, no thread, one order per seed."""

import asyncio
import contextvars
import heapq
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine
from itertools import count
from typing import Any, Final, TypeVar, TypeVarTuple, Unpack

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

STEP_S: Final = 1e-6
"""What each turn of the loop takes: no two moments are ever quite the same."""
TURNS_MAX: Final = 200_000
"""After so many turns somebody is running in circles."""

OWNER: contextvars.ContextVar[list["asyncio.Task[Any]"] | None] = contextvars.ContextVar(
    "OWNER", default=None
)
"""The tasks of the simulated process that the running code belongs to."""


class Stuck(Exception):
    """Nothing is ready, nothing is scheduled, and the simulation is not over."""


class NumberedTask(asyncio.Task[T]):
    """A task that sets sort by its number, not by its address: sets of tasks repeat, too."""

    _numbers = count()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._number = next(self._numbers)
        super().__init__(*args, **kwargs)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class Callback(asyncio.TimerHandle):
    """A callback and, for a timer, its moment; leaner than what it stands in for."""

    __slots__ = ("arguments", "context", "dropped", "loop", "what")

    def __init__(
        self, loop: "VirtualLoop", when: float, what: Any, arguments: Any, context: Any
    ) -> None:
        self._when = when
        self.loop = loop
        self.what = what
        self.arguments = arguments
        self.context = contextvars.copy_context() if context is None else context
        self.dropped = False

    def run(self) -> None:
        """Call it; what it raises is a fault of the code under test."""
        try:
            self.context.run(self.what, *self.arguments)
        except Exception as error:  # noqa: BLE001  # the border of the loop
            self.loop.call_exception_handler({"message": "a callback", "exception": error})

    def cancel(self) -> None:
        """Forget what was to be called."""
        self.dropped = True
        self.what = self.arguments = None

    def cancelled(self) -> bool:
        """Return whether it was cancelled."""
        return self.dropped


class VirtualLoop(asyncio.AbstractEventLoop):
    """Runs callbacks in the order they came, or, with `shuffle`, in any other.

    It offers what tasks, futures and timeouts need; whoever asks for a socket or a thread gets
    the error of the abstract loop.
    """

    def __init__(self, shuffle: Callable[[list[Any]], None] | None = None) -> None:
        self._shuffle = shuffle
        self._ready: list[Callback] = []
        self._timers: list[tuple[float, int, Callback]] = []
        self._numbers = count()
        self._time = 0.0
        self._closed = False
        self.turns = 0
        self.troubles: list[str] = []

    # ------------------------------------------------------------ what asyncio asks of a loop

    def time(self) -> float:
        """Return the seconds since the simulation began."""
        return self._time

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return not self._closed

    def is_closed(self) -> bool:
        return self._closed

    def create_future(self) -> "asyncio.Future[Any]":
        return asyncio.Future(loop=self)

    def create_task(
        self, coro: Any, *, name: str | None = None, context: Any = None, **more: Any
    ) -> "asyncio.Task[Any]":
        task: asyncio.Task[Any] = NumberedTask(coro, loop=self, name=name, context=context, **more)
        owner = OWNER.get() if context is None else context.get(OWNER)
        if owner is not None:
            owner.append(task)
        return task

    def call_soon(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Any = None
    ) -> asyncio.Handle:
        handle = Callback(self, self._time, callback, args, context)
        self._ready.append(handle)
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Any = None
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def call_later(
        self,
        delay: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Any = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self._time + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Any = None,
    ) -> asyncio.TimerHandle:
        handle = Callback(self, when, callback, args, context)
        heapq.heappush(self._timers, (when, next(self._numbers), handle))
        return handle

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Note what nobody caught: it is a fault of the code under test."""
        self.troubles.append(f"{context.get('message')}: {context.get('exception')!r}")

    # ------------------------------------------------------------ running

    def run_until_complete(self, future: Any) -> Any:
        """Run `future`, a coroutine, to its end in virtual time and return its result.

        Raises Stuck when it can never end.
        """
        hooks = sys.get_asyncgen_hooks()
        asyncio._set_running_loop(self)  # noqa: SLF001  # made for those who write loops
        sys.set_asyncgen_hooks(firstiter=None, finalizer=self._finalize)
        try:
            main = self.create_task(future)
            while not main.done():
                self._turn()
            return main.result()
        finally:
            sys.set_asyncgen_hooks(*hooks)
            asyncio._set_running_loop(None)  # noqa: SLF001  # the same
            self._closed = True

    def _finalize(self, generator: AsyncGenerator[Any, Any]) -> None:
        closing: Coroutine[Any, Any, None] = generator.aclose()
        self.call_soon(self.create_task, closing)

    def _turn(self) -> None:
        self.turns += 1
        if self.turns > TURNS_MAX:
            raise Stuck(f"{TURNS_MAX} turns of the loop, and no end")
        self._time += STEP_S
        if not self._ready:
            self._jump()
        if self._timers and self._timers[0][0] <= self._time:
            self._collect()
        batch, self._ready = self._ready, []
        if self._shuffle is not None and len(batch) > 1:
            self._shuffle(batch)
        for handle in batch:
            if not handle.dropped:
                handle.run()

    def _jump(self) -> None:
        timers = self._timers
        while timers and timers[0][2].dropped:
            heapq.heappop(timers)
        if not timers:
            raise Stuck("nothing is ready and nothing is scheduled")
        self._time = max(self._time, timers[0][0])

    def _collect(self) -> None:
        timers, now = self._timers, self._time
        while timers and timers[0][0] <= now:
            self._ready.append(heapq.heappop(timers)[2])
