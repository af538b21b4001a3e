"""The platform, called step by step: start runs, follow them, look at what is there."""

import time
from collections.abc import Generator, Iterator
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


class Client:
    """Calls the orchestrator at `url` with `key`; a context that closes its connections.

    What fails for a moment is repeated within `timeouts.give_up`; every method raises APIError
    where the server refuses, and ConnectionLost where nobody answered for so long.
    """

    def __init__(
        self, url: str, key: str | Secret | None = None, *, timeouts: Timeouts | None = None
    ) -> None:
        self.timeouts = timeouts or Timeouts()
        self.http = httpx.Client(
            base_url=asking.base(url),
            headers=asking.headers(key),
            timeout=self.timeouts.of_requests(),
            limits=transport.LIMITS,
            verify=transport.tls(),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self.http.close()

    # ------------------------------------------------------------ runs

    def run(self, agent: str, text: Content, **how: Unpack[asking.Starting]) -> "RunHandle":
        """Start a run and return once it is durable.

        `how` may have `session`, `request_id`, `context`, `on_busy`, `labels`, `timeout_ms`.
        """
        run = self.ask(asking.start_run(agent, text, how))
        return RunHandle(self, run.run_id, run.session_id)

    def attach(self, run_id: str, after_seq: int = 0) -> "RunHandle":
        """Return a handle of a run that is there already; its events after `after_seq` come."""
        return RunHandle(self, run_id, "", after_seq)

    def get(self, run_id: str) -> RunInfo:
        """Return a run as last committed."""
        return self.ask(asking.get_run(run_id))

    def cancel(self, run_id: str, reason: str | None = None) -> None:
        """End a run; again is fine, RunEnded says that it ended otherwise."""
        self.ask(asking.cancel_run(run_id, reason))

    def events(self, run_id: str, after_seq: int = 0, *, limit: int = 100) -> EventPage:
        """Return a page of a run's log."""
        return self.ask(asking.list_events(run_id, after_seq, limit))

    # ------------------------------------------------------------ sessions, agents

    def messages(self, session: str, *, limit: int = 50, before: str | None = None) -> MessagePage:
        """Return the newest messages before a message id, oldest first."""
        return self.ask(asking.list_messages(session, limit, before))

    def agents(
        self, *, capability: str | None = None, status: str | None = None
    ) -> list[AgentInfo]:
        """Return the registered agents."""
        return self.ask(asking.list_agents(capability, status)).agents

    def register(self, agent_id: str, name: str, endpoint: str, **fields: Any) -> None:
        """Add or update an agent; `fields` are those of the contract."""
        self.ask(asking.register(agent_id, name, endpoint, fields))

    def heartbeat(self, agent_id: str, instance_id: str | None = None) -> None:
        """Say that an agent lives."""
        self.ask(asking.about_agent(agent_id, "heartbeat", instance_id))

    def drain(self, agent_id: str, instance_id: str | None = None) -> None:
        """Give an agent no more runs until it registers again."""
        self.ask(asking.about_agent(agent_id, "drain", instance_id))

    def ask(self, ask: asking.Ask[T]) -> T:
        """Make a request, again and again where that may help."""
        patience = transport.patience(self.http, self.timeouts)
        while True:
            try:
                answer = self.http.request(
                    ask.method, ask.path, params=ask.query, content=ask.content()
                )
                return ask.taken(answer.status_code, answer.headers, answer.content)
            except (httpx.TransportError, APIError) as error:
                delay_s = patience.after(error)
            time.sleep(delay_s)


class RunHandle:
    """A run: iterate over its events, each once and to the last, however often the stream breaks.

    What was iterated is gone: `result` and `text` go on from there to the end. One reader at a
    time; a second one is another `attach`.
    """

    def __init__(self, client: Client, run_id: str, session_id: str, after: int = 0) -> None:
        self.run_id = run_id
        self.session_id = session_id
        self._client = client
        self._reading = Reading(client.http, client.timeouts, run_id, after)
        self._answer: httpx.Response | None = None
        self._pieces: Iterator[bytes] | None = None

    def __repr__(self) -> str:
        return f"<RunHandle {self.run_id} after {self._reading.following.seq}>"

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> RunEvent:
        while (event := self._reading.next()) is None:
            if self._reading.following.ended:
                raise StopIteration
            self._read()
        return event

    def deltas(self) -> Generator[str, None, None]:
        """Yield the words of the answer; after an `agent_invoke_retrying` they begin again."""
        for event in self:
            if words := self._reading.words(event):
                yield words

    def result(self) -> RunResult:
        """Wait for the end; raises RunFailed or RunCancelled."""
        for _ in self:
            pass
        found = self._reading.following.result()
        return found or following.outcome(self._client.get(self.run_id))

    def text(self) -> str:
        """Wait for the end and return the message as text; raises as `result` does."""
        return self.result().text

    def cancel(self, reason: str | None = None) -> None:
        """End the run; again is fine, RunEnded says that it ended otherwise."""
        self._client.cancel(self.run_id, reason)

    def close(self) -> None:
        """Leave the stream, not the run: iterating again resumes it."""
        answer, self._answer, self._pieces = self._answer, None, None
        if answer is not None:
            answer.close()

    def _read(self) -> None:
        """Take what comes next from the stream, or see to it that there is one again."""
        try:
            if self._pieces is None:
                self._open()
            else:
                self._reading.take(next(self._pieces, b""))
        except (httpx.TransportError, APIError) as error:
            self.close()
            time.sleep(self._reading.patience.after(error))
        except BaseException:
            self.close()
            raise
        if self._reading.following.ended:
            self.close()

    def _open(self) -> None:
        self._answer = answer = self._client.http.send(self._reading.request(), stream=True)
        body = b"" if answer.status_code == following.OK else answer.read()
        if self._reading.following.opened(answer.status_code, answer.headers, body):
            self._pieces = answer.iter_raw()
