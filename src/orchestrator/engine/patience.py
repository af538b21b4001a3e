"""Asking again: what may pass costs those behind the counter some waiting, and nothing else."""

from collections.abc import Awaitable, Callable, Iterator
from typing import ParamSpec, TypeVar

from orchestrator.core.errors import Unavailable
from orchestrator.ports import World

P = ParamSpec("P")
T = TypeVar("T")

_WAITS_S = (0.05, 0.2, 0.5, 1.0, 2.0)
"""Waits between tries while the store is away; the last one repeats."""


def waits() -> Iterator[float]:
    """Return how many seconds to wait before each next try, without end."""
    yield from _WAITS_S[:-1]
    while True:
        yield _WAITS_S[-1]


async def patiently(
    world: World, ask: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Return what `ask` returns, however often it must be asked; only Unavailable is waited out.

    For work that nobody waits for in person: a caller is told at once, and asks again himself.
    """
    for wait in waits():
        try:
            return await ask(*args, **kwargs)
        except Unavailable:
            await world.sleep(wait)
    raise AssertionError  # the waits never end
