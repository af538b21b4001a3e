"""Two agents, of which one asks the other: through the orchestrator, so that the log shows it.

Beside a running `./orchestrator`, in two terminals:

    $ ORCHESTRATOR_URL=http://localhost:8080 python3 examples/team.py
    $ ./orchestrator invoke editor "The cat sat on the mat because the cat was tired"
    Of 11 words I would cut one: you say “the” 3 times.

The editor's run has a child, the run of the counter; cancel the first, and the second ends, too.
Both agents live in this one process, but neither knows: each may move to a machine of its own.
"""

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator

from orchestrator_sdk import Context, State, agent, serving


@agent("counter")
async def counter(ctx: Context) -> str:
    words = ctx.text.lower().split()
    word, times = Counter(words).most_common(1)[0]
    return f"{len(words)} {word} {times}"


@agent("editor")
async def editor(ctx: Context) -> AsyncIterator[str | State]:
    yield State("counting", "the counter reads your text")
    total, word, times = (await ctx.call("counter", ctx.text)).split()
    yield f"Of {total} words I would cut one: "
    yield f"you say “{word}” {times} times."


async def main() -> None:
    """Serve both until SIGTERM or Ctrl-C, which let them finish what they are at."""
    told = asyncio.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(sign, told.set)
    async with serving(counter, port=8002) as one, serving(editor, port=8003) as other:
        print(f"counter answers at {one}\neditor answers at {other}", flush=True)
        await told.wait()


asyncio.run(main())
