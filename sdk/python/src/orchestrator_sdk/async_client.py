"""The platform from asyncio: start runs, follow them, look at what is there."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx

from orchestrator_sdk import asking, following, transport
from orchestrator_sdk.errors import APIError
from orchestrator_sdk.frames import Content
from orchestrator_sdk.reading import Reading
from orchestrator_sdk.secret import Secret
from orchestrator_sdk.shapes import AgentInfo, EventPage, MessagePage, RunEvent, RunInfo, RunResult
from orchestrator_sdk.transport import Timeouts

T = TypeVar("T")


class AsyncClient:
    """Calls the orchestrator at `url` with `key`; a context that closes its connections.

    What fails for a moment is repeated within `timeouts.give_up`; every method raises APIError
    where the server refuses, and ConnectionLost where nobody answered for so long.
    """

    def __init__(
        self, url: str, key: str | Secret | None = None, *, timeouts: Timeouts | None = None
    ) -> None:
        self.timeouts = timeouts or Timeouts()
        self.http = httpx.AsyncClient(
            base_url=asking.base(url),
            headers=asking.headers(key),
            timeout=self.timeouts.of_requests(),
            limits=transport.LIMITS,
            verify=transport.tls(),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        await self.http.aclose()

    # ------------------------------------------------------------ runs

    async def run(
        self, agent: str, text: Content, **how: Unpack[asking.Starting]
    ) -> "AsyncRunHandle":
        """Start a run and return once it is durable.

        `how` may have `session`, `request_id`, `context`, `on_busy`, `labels`, `timeout_ms`.
        """
        run = await self.ask(asking.start_run(agent, text, how))
        return AsyncRunHandle(self, run.run_id, run.session_id)

    def attach(self, run_id: str, after_seq: int = 0) -> "AsyncRunHandle":
        """Return a handle of a run that is there already; its events after `after_seq` come."""
        return AsyncRunHandle(self, run_id, "", after_seq)

    async def get(self, run_id: str) -> RunInfo:
        """Return a run as last committed."""
        return await self.ask(asking.get_run(run_id))

    async def cancel(self, run_id: str, reason: str | None = None) -> None:
        """End a run; again is fine, RunEnded says that it ended otherwise."""
        await self.ask(asking.cancel_run(run_id, reason))

    async def events(self, run_id: str, after_seq: int = 0, *, limit: int = 100) -> EventPage:
        """Return a page of a run's log."""
        return await self.ask(asking.list_events(run_id, after_seq, limit))

    # ------------------------------------------------------------ sessions, agents

    async def messages(
        self, session: str, *, limit: int = 50, before: str | None = None
    ) -> MessagePage:
        """Return the newest messages before a message id, oldest first."""
        return await self.ask(asking.list_messages(session, limit, before))

    async def agents(
        self, *, capability: str | None = None, status: str | None = None
    ) -> list[AgentInfo]:
        """Return the registered agents."""
        return (await self.ask(asking.list_agents(capability, status))).agents

    async def register(self, agent_id: str, name: str, endpoint: str, **fields: Any) -> None:
        """Add or update an agent; `fields` are those of the contract."""
        await self.ask(asking.register(agent_id, name, endpoint, fields))

    async def heartbeat(self, agent_id: str, instance_id: str | None = None) -> None:
        """Say that an agent lives."""
        await self.ask(asking.about_agent(agent_id, "heartbeat", instance_id))

    async def drain(self, agent_id: str, instance_id: str | None = None) -> None:
        """Give an agent no more runs until it registers again."""
        await self.ask(asking.about_agent(agent_id, "drain", instance_id))

    async def ask(self, ask: asking.Ask[T]) -> T:
        """Make a request, again and again where that may help."""
        patience = transport.patience(self.http, self.timeouts)
        while True:
            try:
                answer = await self.http.request(
                    ask.method, ask.path, params=ask.query, content=ask.content()
                )
                return ask.taken(answer.status_code, answer.headers, answer.content)
            except (httpx.TransportError, APIError) as error:
                delay_s = patience.after(error)
            await asyncio.sleep(delay_s)


class AsyncRunHandle:
    """A run: iterate over its events, each once and to the last, however often the stream breaks.

    What was iterated is gone: `result` and `text` go on from there to the end. One reader at a
    time; a second one is another `attach`.
    """

    def __init__(self, client: AsyncClient, run_id: str, session_id: str, after: int = 0) -> None:
        self.run_id = run_id
        self.session_id = session_id
        self._client = client
        self._reading = Reading(client.http, client.timeouts, run_id, after)
        self._answer: httpx.Response | None = None
        self._pieces: AsyncIterator[bytes] | None = None

    def __repr__(self) -> str:
        return f"<AsyncRunHandle {self.run_id} after {self._reading.following.seq}>"

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RunEvent:
        while (event := self._reading.next()) is None:
            if self._reading.following.ended:
                raise StopAsyncIteration
            await self._read()
        return event

    async def deltas(self) -> AsyncGenerator[str, None]:
        """Yield the words of the answer; after an `agent_invoke_retrying` they begin again."""
        async for event in self:
            if words := self._reading.words(event):
                yield words

    async def result(self) -> RunResult:
        """Wait for the end; raises RunFailed or RunCancelled."""
        async for _ in self:
            pass
        found = self._reading.following.result()
        return found or following.outcome(await self._client.get(self.run_id))

    async def text(self) -> str:
        """Wait for the end and return the message as text; raises as `result` does."""
        return (await self.result()).text

    async def cancel(self, reason: str | None = None) -> None:
        """End the run; again is fine, RunEnded says that it ended otherwise."""
        await self._client.cancel(self.run_id, reason)

    async def aclose(self) -> None:
        """Leave the stream, not the run: iterating again resumes it."""
        answer, self._answer, self._pieces = self._answer, None, None
        if answer is not None:
            await answer.aclose()

    async def _read(self) -> None:
        """Take what comes next from the stream, or see to it that there is one again."""
        try:
            if self._pieces is None:
                await self._open()
            else:
                self._reading.take(await anext(self._pieces, b""))
        except (httpx.TransportError, APIError) as error:
            await self.aclose()
            await asyncio.sleep(self._reading.patience.after(error))
        except BaseException:
            await self.aclose()
            raise
        if self._reading.following.ended:
            await self.aclose()

    async def _open(self) -> None:
        self._answer = answer = await self._client.http.send(self._reading.request(), stream=True)
        body = b"" if answer.status_code == following.OK else await answer.aread()
        if self._reading.following.opened(answer.status_code, answer.headers, body):
            self._pieces = answer.aiter_raw()
