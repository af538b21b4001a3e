"""An agent as an ASGI application, or as two routes of yours."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from orchestrator_sdk.answering import Answering, Invoke


class Servable(Answering, Protocol):
    """What an application needs to know of an agent."""

    @property
    def version(self) -> str | None: ...
    @property
    def capabilities(self) -> list[str]: ...
    def lifespan(self) -> AbstractAsyncContextManager[None]: ...


class Health:
    """The ASGI application behind `GET /health`."""

    def __init__(self, agent: Servable) -> None:
        self._agent = agent

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Say that the agent is well."""
        said = {
            "status": "healthy",
            "version": self._agent.version or "",
            "capabilities": self._agent.capabilities,
        }
        await JSONResponse(said)(scope, receive, send)


def create(agent: Servable) -> Starlette:
    """Return an application that is this agent."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with agent.lifespan():
            yield

    return Starlette(routes=routes(agent), lifespan=lifespan)


def mount(app: Any, agent: Servable, path: str = "/") -> None:
    """Add an agent's routes to a Starlette or FastAPI application, below `path`.

    Register it with the address of `path`. The agent's own `lifespan` is not run: the application
    has one.
    """
    app.router.routes.extend(routes(agent, path))


def routes(agent: Servable, path: str = "/") -> list[Route]:
    """Return the routes of an agent below `path`."""
    prefix = "/" + path.strip("/") if path.strip("/") else ""
    return [
        Route(f"{prefix}/invoke", Invoke(agent), methods=["POST"], name=f"invoke_{agent.id}"),
        Route(f"{prefix}/health", Health(agent), methods=["GET"], name=f"health_{agent.id}"),
    ]
