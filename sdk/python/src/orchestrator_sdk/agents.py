"""An agent: a name, and an async function or generator that answers."""

import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, Unpack

from starlette.applications import Starlette

from orchestrator_sdk import application
from orchestrator_sdk.answering import Handler
from orchestrator_sdk.secret import Secret, secret
from orchestrator_sdk.server import Serving, serve

INSTANCE_ID: Final = f"inst_{secrets.token_hex(8)}"
"""This process, as the platform tells instances of one agent apart."""

Lifespan = Callable[[], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def _nothing() -> AsyncIterator[None]:
    yield


class Agent:
    """An agent that can be served, mounted into an application, or registered.

    `handler(ctx)` is an async generator that yields text (and State, Event, Done or Pause), or an
    async function that returns the whole message. `auth_token` is what the platform shows this
    agent; without it every caller is answered. `lifespan()` is a context around serving. `options`
    go into the registration as they are: `timeouts`, `retry`, `on_lost`, `max_concurrency`, …
    """

    def __init__(  # noqa: PLR0913  # all but two by name
        self,
        id: str,  # noqa: A002  # what the contract calls it
        handler: Handler,
        *,
        name: str | None = None,
        version: str | None = None,
        capabilities: Sequence[str] = (),
        auth_token: str | Secret | None = None,
        lifespan: Lifespan = _nothing,
        keep_alive_s: float = 10.0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.id = id
        self.handler = handler
        self.name = name or id
        self.version = version
        self.capabilities = list(capabilities)
        self.auth_token = secret(auth_token)
        self.lifespan = lifespan
        self.keep_alive_s = keep_alive_s
        self.instance_id = INSTANCE_ID
        self.options = dict(options or {})

    def __repr__(self) -> str:
        return f"<Agent {self.id}>"

    def app(self) -> Starlette:
        """Return an ASGI application with `POST /invoke` and `GET /health`."""
        return application.create(self)

    def run(self, host: str = "127.0.0.1", port: int = 8000, **how: Unpack[Serving]) -> None:
        """Serve until SIGTERM or Ctrl-C; see `serve`."""
        serve(self, host, port, **how)

    def registration(self, endpoint: str) -> dict[str, Any]:
        """Return what the platform is told when the agent registers itself at `endpoint`."""
        wanted = {
            **self.options,
            "agent_id": self.id,
            "name": self.name,
            "endpoint": endpoint,
            "capabilities": self.capabilities,
            "version": self.version,
            "instance_id": self.instance_id,
            "auth": self.auth_token and {"type": "bearer", "token": self.auth_token.reveal()},
        }
        return {name: value for name, value in wanted.items() if value is not None}


def agent(id: str, **how: Any) -> Callable[[Handler], Agent]:  # noqa: A002  # as above
    """Turn an async function or generator into an Agent; `how` is what Agent takes."""

    def made(handler: Handler) -> Agent:
        return Agent(id, handler, **how)

    return made
