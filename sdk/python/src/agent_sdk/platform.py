"""Calls the platform from within a run: models, tools, other agents, the transcript."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from time import monotonic
from typing import Any, Final, TypeVar

import httpx
import msgspec

from agent_sdk.models import Message, PlatformError, ToolResult
from orchestrator_sdk import asking
from orchestrator_sdk.answering import speaking
from orchestrator_sdk.asking import given, part
from orchestrator_sdk.calling import ChildRun, Sending
from orchestrator_sdk.errors import OrchestratorError, api_error
from orchestrator_sdk.frames import Content
from orchestrator_sdk.sse import STREAM, SSEParser
from orchestrator_sdk.transport import agent_http

T = TypeVar("T")

WAIT_MS: Final = 50_000
"""The longest that the platform holds one `wait`."""
MODEL_S: Final = 600.0
"""The longest silence of a model."""
_DONE: Final = "[DONE]"


class PlatformClient:
    """The platform at `base_url`, for the run `run_id`; every method raises PlatformError.

    Within the invocation of that run its token is sent along by itself; elsewhere `run_token` is.
    """

    def __init__(self, base_url: str, run_id: str, run_token: str | None = None) -> None:
        self.base_url = base_url.rstrip("/")
        self.run_id = run_id
        self._run_token = run_token
        self.llm = LLM(self)
        self.tools = Tools(self)
        self.agents = Agents(self)
        self.sessions = Sessions(self)

    async def register_agent(
        self, agent_id: str, name: str, endpoint: str, **fields: Any
    ) -> dict[str, Any]:
        """Add or update an agent; see the function of this name."""
        return await register_agent(self.base_url, agent_id, name, endpoint, **fields)

    def headers(self) -> dict[str, str]:
        """Return what tells the platform which run speaks."""
        wanted = {"X-Run-ID": self.run_id, "X-Run-Token": self._run_token}
        ctx = speaking.get()
        if ctx is not None and ctx.run_id == self.run_id and not self._run_token:
            wanted |= ctx.credentials()
        return {name: value for name, value in wanted.items() if value}

    async def ask(
        self,
        method: str,
        path: str,
        kind: type[T],
        body: Any = None,
        query: Mapping[str, Any] | None = None,
        *,
        held_s: float = 0.0,
    ) -> T:
        """Make one request and return its answer, which may be held back for `held_s`."""
        ask = asking.Ask(method, path, kind, body, dict(query or {}))
        return await _asked(self.base_url, ask, self.headers(), held_s)


class LLM:
    """Models, through the platform's proxy."""

    def __init__(self, client: PlatformClient) -> None:
        self._client = client

    async def chat_completions(
        self, model: str, messages: Sequence[Any], **more: Any
    ) -> dict[str, Any]:
        """Return a completion as OpenAI shapes it; `more` are its other parameters."""
        body = _chat(model, messages, more)
        path = "/v1/chat/completions"
        return await self._client.ask("POST", path, dict[str, Any], body, held_s=MODEL_S)

    async def chat_completions_stream(
        self, model: str, messages: Sequence[Any], **more: Any
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield the chunks of a completion; raises PlatformError when it breaks off."""
        body = _chat(model, messages, {**more, "stream": True})
        url = self._client.base_url + "/v1/chat/completions"
        headers = self._client.headers() | STREAM
        parser = SSEParser()
        async with (
            _failing_here(),
            agent_http(MODEL_S) as http,
            http.stream("POST", url, json=body, headers=headers) as answer,
        ):
            if answer.status_code != httpx.codes.OK:
                raise api_error(answer.status_code, answer.headers, await answer.aread())
            async for data in answer.aiter_raw():
                for event in parser.feed(data):
                    if event.data == _DONE:
                        return
                    yield _chunk(event.data)
            raise PlatformError("the completion broke off before its end", code="llm_error")


class Tools:
    """Tools, as policy and people allow them."""

    def __init__(self, client: PlatformClient) -> None:
        self._client = client

    async def invoke(
        self,
        name: str,
        args: Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
        timeout_ms: int | None = None,
    ) -> ToolResult:
        """Call a tool; pending where it takes time, a client or a human."""
        body = given({
            "run_id": self._client.run_id, "args": dict(args or {}),
            "idempotency_key": idempotency_key, "timeout_ms": timeout_ms,
        })  # fmt: skip
        return await self._client.ask("POST", f"/v1/tools/{part(name)}/invoke", ToolResult, body)

    async def get_status(self, tool_call_id: str) -> ToolResult:
        """Return how a call stands."""
        return await self._client.ask("GET", f"/v1/tool_calls/{part(tool_call_id)}", ToolResult)

    async def wait(self, tool_call_id: str, timeout_ms: int = WAIT_MS) -> ToolResult:
        """Wait for the end of a call, at most 50 s; pending where it is not there by then."""
        path = f"/v1/tool_calls/{part(tool_call_id)}/wait"
        held_ms = min(timeout_ms, WAIT_MS)
        body = {"timeout_ms": held_ms}
        found = await self._client.ask("POST", path, ToolResult, body, held_s=held_ms / 1000)
        return found if found.tool_call_id else msgspec.structs.replace(
            found, tool_call_id=tool_call_id
        )  # fmt: skip

    async def invoke_and_wait(
        self,
        name: str,
        args: Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
        timeout_ms: int = 600_000,
    ) -> ToolResult:
        """Call a tool and wait for its end; still pending when `timeout_ms` are over."""
        ends = monotonic() + timeout_ms / 1000
        found = await self.invoke(name, args, idempotency_key=idempotency_key)
        while found.pending and (left := ends - monotonic()) > 0:
            found = await self.wait(found.tool_call_id, max(1, int(left * 1000)))
        return found


class Agents:
    """Other agents."""

    def __init__(self, client: PlatformClient) -> None:
        self._client = client

    async def invoke(
        self,
        agent_id: str,
        message: Content | Message | Mapping[str, Any],
        *,
        context: dict[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield the frames of a child run as `{"event", "data"}`, `done` at last.

        `message` is a text, parts, or a whole message such as `ctx.input_message`.
        """
        body = {
            "input_message": _message(message),
            "parent_run_id": self._client.run_id or None,
            "context": context,
        }
        sending = Sending(
            base_url=self._client.base_url, agent_id=agent_id, body=body,
            key=idempotency_key, headers=self._client.headers(),
        )  # fmt: skip
        async with (
            _failing_here(),
            agent_http() as http,
            aclosing(ChildRun(lambda: http, sending).frames()) as frames,
        ):
            async for frame in frames:
                yield {"event": frame.event, "data": frame.data}

    async def list_agents(self, capability: str | None = None) -> list[dict[str, Any]]:
        """Return the registered agents."""
        query = given({"capability": capability})
        found = await self._client.ask("GET", "/v1/agents", dict[str, Any], None, query)
        return list(found["agents"])


class Sessions:
    """Transcripts."""

    def __init__(self, client: PlatformClient) -> None:
        self._client = client

    async def get_messages(
        self, session_id: str, limit: int = 50, before: str | None = None
    ) -> list[dict[str, Any]]:
        """Return the newest messages before a message id, oldest first."""
        path = f"/v1/sessions/{part(session_id)}/messages"
        query = given({"limit": limit, "before": before})
        return list((await self._client.ask("GET", path, dict[str, Any], None, query))["messages"])


async def register_agent(
    base_url: str,
    agent_id: str,
    name: str,
    endpoint: str,
    *,
    api_key: str | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """Add or update an agent; `fields` are `capabilities`, `auth` and the others of the contract.

    Raises PlatformError.
    """
    ask = asking.register(agent_id, name, endpoint, fields)
    return await _asked(base_url.rstrip("/"), ask, asking.headers(api_key))


async def _asked(
    base_url: str, ask: asking.Ask[T], headers: Mapping[str, str], held_s: float = 0.0
) -> T:
    """Make one request; an answer that is held back is waited for as much longer."""
    async with _failing_here(), agent_http(held_s) as http:
        answer = await http.request(
            ask.method, base_url + ask.path, params=ask.query, content=ask.content(),
            headers={"Content-Type": "application/json", **headers},
        )  # fmt: skip
        return ask.taken(answer.status_code, answer.headers, answer.content)


@asynccontextmanager
async def _failing_here() -> AsyncIterator[None]:
    """Turn whatever goes wrong with the platform into the one error of this surface."""
    try:
        yield
    except PlatformError:
        raise
    except OrchestratorError as error:
        status = getattr(error, "status", 0)
        raise PlatformError(error.message, code=error.code, status=status) from error
    except httpx.TransportError as error:
        raise PlatformError(f"the platform does not answer: {error!r}", code="unavailable") from (
            error
        )


def _chat(model: str, messages: Sequence[Any], more: Mapping[str, Any]) -> dict[str, Any]:
    return {**more, "model": model, "messages": [_plain(message) for message in messages]}


def _message(said: Content | Message | Mapping[str, Any]) -> Any:
    return {"role": "user", "content": said} if isinstance(said, str | list) else _plain(said)


def _plain(message: Any) -> Any:
    return msgspec.to_builtins(message)


def _chunk(data: str) -> dict[str, Any]:
    with suppress(msgspec.DecodeError):
        chunk = msgspec.json.decode(data)
        if isinstance(chunk, dict) and "error" not in chunk:
            return chunk
    raise PlatformError(f"the completion broke off: {data[:200]}", code="llm_error")
