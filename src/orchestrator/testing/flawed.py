"""Runs a contract against a driver in process, and says which of its promises were not kept.

A contract that stays green for a driver that is broken on purpose has a hole; the drivers that are
so broken stand in `flawed_stores` and `flawed_buses`.
"""

import inspect
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias

Fixtures: TypeAlias = Callable[[], AbstractAsyncContextManager[Mapping[str, Any]]]
"""Opens a new driver with what its tests ask for, by name, for one test."""


async def broken_promises(
    contract: type, fixtures: Fixtures, only: Collection[str] = ()
) -> dict[str, str]:
    """Run every test of a contract, or those named, and return what the ones that failed said.

    Any error counts, for a driver that is broken may break whatever looks at it; that the rig
    raises none of its own is seen by a driver that is whole.
    """
    broken: dict[str, str] = {}
    suite = contract()
    for name in sorted(only or (name for name in dir(suite) if name.startswith("test_"))):
        test = getattr(suite, name)
        async with fixtures() as given:
            asked = {wanted: given[wanted] for wanted in inspect.signature(test).parameters}
            try:
                await test(**asked)
            except Exception as error:  # noqa: BLE001  # see above
                said = str(error).splitlines() or [""]
                broken[name] = f"{type(error).__name__}: {said[0]}"
    return broken
