"""Something that goes on beside the body of an `async with`."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any


@asynccontextmanager
async def beside(
    work: Coroutine[Any, Any, None], stop: Callable[[], None] | None = None
) -> AsyncIterator[None]:
    """Run `work` while the body runs; at its end call `stop` and await it, or cancel it.

    An error of the body or the work leaves as it is and not in a group.
    """
    failure: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(work)
            try:
                yield
            except BaseException as error:  # noqa: BLE001  # raised below, once the work has ended
                failure = error
            if stop is None:
                task.cancel()
            else:
                stop()
    except ExceptionGroup as failed:  # the work's own, which is one
        raise failed.exceptions[0] from failed
    if failure is not None:
        raise failure
