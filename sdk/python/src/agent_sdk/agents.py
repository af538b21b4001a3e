"""Agents of the old surface: subclass one, or decorate a function."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, Final, TypeAlias, Unpack

from starlette.applications import Starlette

from agent_sdk.context import InvokeContext, invoke_context
from agent_sdk.responses import Frame
from orchestrator_sdk import agents
from orchestrator_sdk.answering import closable
from orchestrator_sdk.context import Context
from orchestrator_sdk.frames import Said, Written
from orchestrator_sdk.server import Serving

Handler: TypeAlias = Callable[[InvokeContext], Any]

_EVENT: Final = "event:"


class Agent(ABC):
    """An agent: implement `invoke(ctx)` as an async generator that yields frames or text.

    `agent_id`, `name`, `version`, `description` and `capabilities` are arguments, or attributes of
    the class. A stream without a `done` is given one.
    """

    agent_id: str = ""
    name: str = ""
    version: str = "1.0.0"
    description: str = ""
    capabilities: Sequence[str] = ()

    def __init__(
        self,
        agent_id: str | None = None,
        name: str | None = None,
        *,
        version: str | None = None,
        description: str | None = None,
        capabilities: Sequence[str] | None = None,
    ) -> None:
        self.agent_id = agent_id or self.agent_id or type(self).__name__
        self.name = name or self.name or self.agent_id
        self.version = version or self.version
        self.description = description or self.description
        self.capabilities = list(self.capabilities if capabilities is None else capabilities)

    @abstractmethod
    def invoke(self, ctx: InvokeContext) -> Any:
        """Answer one invocation; make it an async generator."""

    async def on_startup(self) -> None:  # noqa: B027  # may be left as it is
        """Get ready; called once before the first invocation."""

    async def on_shutdown(self) -> None:  # noqa: B027  # the same
        """Clean up; called once after the last invocation."""

    def create_app(self) -> Starlette:
        """Return an ASGI application with `POST /invoke` and `GET /health`."""
        return self.core().app()

    def run(self, host: str = "127.0.0.1", port: int = 8000, **how: Unpack[Serving]) -> None:
        """Serve until SIGTERM or Ctrl-C; registers itself where ORCHESTRATOR_URL is set."""
        self.core().run(host, port, **how)

    def core(self) -> agents.Agent:
        """Return this agent as one of `orchestrator_sdk`."""
        return agents.Agent(
            self.agent_id,
            self._answer,
            name=self.name,
            version=self.version,
            capabilities=list(self.capabilities),
            lifespan=self._lifespan,
        )

    @asynccontextmanager
    async def _lifespan(self) -> AsyncIterator[None]:
        await self.on_startup()
        try:
            yield
        finally:
            await self.on_shutdown()

    async def _answer(self, ctx: Context) -> AsyncIterator[Said]:
        answer = self.invoke(invoke_context(ctx))
        if not hasattr(answer, "__aiter__"):
            whole = await answer
            if whole is not None:
                yield said(whole)
            return
        async with aclosing(closable(answer)) as pieces:
            async for piece in pieces:
                yield said(piece)


class FunctionAgent(Agent):
    """An agent whose `invoke` is a function."""

    def __init__(
        self, agent_id: str, name: str | None = None, handler: Handler | None = None, **how: Any
    ) -> None:
        super().__init__(agent_id, name, **how)
        if handler is None:
            raise TypeError("FunctionAgent needs the function that answers: handler=…")
        self._handler = handler

    def invoke(self, ctx: InvokeContext) -> Any:
        """Answer one invocation."""
        return self._handler(ctx)


def create_agent(
    id: str,  # noqa: A002  # what the contract calls it
    name: str | None = None,
    **how: Any,
) -> Callable[[Handler], FunctionAgent]:
    """Turn a function `async def answer(ctx): yield …` into an agent."""

    def made(handler: Handler) -> FunctionAgent:
        return FunctionAgent(id, name, handler, **how)

    return made


def said(piece: Any) -> Any:
    """Return what was yielded: a frame as it is, any other text as a piece of the answer."""
    text = piece.decode() if isinstance(piece, bytes) else piece
    if isinstance(text, Frame):
        return Written(text.name, text.encode())
    if isinstance(text, str) and text.startswith(_EVENT) and text.endswith("\n\n"):
        name = text.partition("\n")[0].removeprefix(_EVENT).strip()
        return Written(name, text.encode())
    return text  # what cannot be said is refused where it is written
