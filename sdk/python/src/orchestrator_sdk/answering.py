"""Answers one invocation: what the agent says becomes a stream, and hanging up cancels it."""

import asyncio
import inspect
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any, Final, Protocol, TypeAlias

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from orchestrator_sdk import frames, sse
from orchestrator_sdk.context import Context, Invocation
from orchestrator_sdk.errors import AgentError
from orchestrator_sdk.frames import ENDING, Done, Said
from orchestrator_sdk.secret import Secret

log = logging.getLogger("orchestrator_sdk")

BODY_MAX: Final = 16 << 20
_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]

Answer: TypeAlias = AsyncIterator[Said] | Awaitable[Said | None]
Handler: TypeAlias = Callable[[Context], Answer]

speaking: ContextVar[Context | None] = ContextVar("speaking", default=None)
"""The invocation that is being answered, for what is called from within it."""


class Answering(Protocol):
    """What an invocation needs to know of its agent."""

    @property
    def id(self) -> str: ...
    @property
    def handler(self) -> Handler: ...
    @property
    def auth_token(self) -> Secret | None: ...
    @property
    def keep_alive_s(self) -> float: ...


class Invoke:
    """The ASGI application behind `POST /invoke`."""

    def __init__(self, agent: Answering) -> None:
        self._agent = agent

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one invocation."""
        request = Request(scope, receive)
        if not _is_allowed(self._agent.auth_token, request.headers.get("authorization", "")):
            await _refusal(401, "unauthorized", "the bearer token of this agent is missing or "
                           "wrong")(scope, receive, send)  # fmt: skip
            return
        try:
            told = _told(await _body(request))
        except ClientDisconnect:
            return
        except ValueError as error:
            await _refusal(400, "invalid_request", str(error))(scope, receive, send)
            return
        ctx = Context(told, request.headers)
        ctx.agent_id = ctx.agent_id or self._agent.id
        await _Stream(self._agent, ctx, send).run(receive)


class _Stream:
    """One answer on its way."""

    def __init__(self, agent: Answering, ctx: Context, send: Send) -> None:
        self._agent = agent
        self._ctx = ctx
        self._send = send
        self._silent = True
        self._spoken = False

    async def run(self, receive: Receive) -> None:
        """Speak until the agent is done or the caller has gone."""
        await self._send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        async with asyncio.TaskGroup() as tasks:
            agent = tasks.create_task(self._speak(), name="agent")
            others = [
                tasks.create_task(_cancelled_by_leaving(receive, agent), name="caller"),
                tasks.create_task(self._comment(), name="keep-alive"),
            ]
            await asyncio.wait({agent})
            for other in others:
                other.cancel()
        if not agent.cancelled():
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _speak(self) -> None:
        speaking.set(self._ctx)
        try:
            if not await self._said_all(self._agent.handler(self._ctx)):
                await self._say(Done())
        except AgentError as error:
            await self._write(frames.failed(error.code, error.message))
        except asyncio.CancelledError as error:
            if _is_being_cancelled():
                raise
            await self._fail(error)  # something that the agent waited for was cancelled
        except (Exception, SystemExit) as error:  # noqa: BLE001  # an exit ends this run alone
            await self._fail(error)
        finally:
            await self._ctx.aclose()

    async def _fail(self, error: BaseException) -> None:
        log.error("the agent failed in run %s", self._ctx.run_id, exc_info=error)
        said = f"the agent failed with {type(error).__name__}; its own log says more"
        await self._write(frames.failed(AgentError.code, said))

    async def _said_all(self, answer: Any) -> bool:
        """Say what comes; return whether that included the end."""
        if inspect.isawaitable(answer):
            whole = await answer
            last = Done(whole) if isinstance(whole, str | list) else whole
            return last is not None and await self._say(last)
        if not hasattr(answer, "__aiter__"):
            raise TypeError(
                f"an agent is an async function or async generator, not one that returns "
                f"{type(answer).__name__}"
            )
        async with aclosing(closable(answer)) as pieces:
            async for piece in pieces:
                if await self._say(piece):
                    return True
        return False

    async def _say(self, said: Said) -> bool:
        """Send what was said; return whether it ends the answer."""
        ended = False
        for one in frames.written(said, spoken=self._spoken):
            await self._write(one.data)
            self._spoken = self._spoken or one.name == "delta"
            ended = ended or one.name in ENDING
        return ended

    async def _write(self, data: bytes) -> None:
        self._silent = False
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def _comment(self) -> None:
        while True:
            await asyncio.sleep(self._agent.keep_alive_s)
            if self._silent:
                await self._write(sse.COMMENT)
            self._silent = True


def closable(pieces: Any) -> AsyncGenerator[Any, None]:
    """Return an async iterator as one that can be closed, as generators can."""
    if isinstance(pieces, AsyncGenerator):
        return pieces
    return _generated(pieces)


async def _generated(pieces: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
    async for piece in pieces:
        yield piece


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _cancelled_by_leaving(receive: Receive, agent: asyncio.Task[None]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    agent.cancel()


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > BODY_MAX:
            raise ValueError(f"the body is over {BODY_MAX} bytes")
    return bytes(body)


def _told(body: bytes) -> Invocation:
    try:
        return msgspec.json.decode(body, type=Invocation)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"this is not an invocation of the agent protocol: {error}") from error


def _is_allowed(wanted: Secret | None, shown: str) -> bool:
    scheme, _, token = shown.partition(" ")
    return wanted is None or (scheme.lower() == "bearer" and wanted.matches(token.strip()))


def _refusal(status: int, code: str, message: str) -> JSONResponse:
    return JSONResponse({"error": message, "code": code}, status)
