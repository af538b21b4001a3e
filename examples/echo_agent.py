"""A whole agent: it repeats what it is told. Copy this one first.

Beside a running `./orchestrator`, in two terminals:

    $ ORCHESTRATOR_URL=http://localhost:8080 python3 examples/echo_agent.py
    $ ./orchestrator invoke echo "Hello"
    You said: Hello

The agent registers itself where ORCHESTRATOR_URL says, and Ctrl-C takes it away again.
"""

from collections.abc import AsyncIterator

from orchestrator_sdk import Context, agent


@agent("echo")
async def echo(ctx: Context) -> AsyncIterator[str]:
    yield f"You said: {ctx.text}"


echo.run(port=8001)
