"""The platform, called step by step: start runs, follow them, look at what is there."""

import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from orchestrator_sdk import asking, following
from orchestrator_sdk.errors import APIError
from orchestrator_sdk.frames import Content
from orchestrator_sdk.secret import Secret
from orchestrator_sdk.shapes import AgentInfo, EventPage, MessagePage, RunEvent, RunInfo, RunResult
from orchestrator_sdk.transport import Patience, Timeouts, tls

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
            verify=tls(),
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

    def run(
        self,
        agent: str,
        text: Content,
        *,
        session: str | None = None,
        request_id: str | None = None,
        context: Mapping[str, Any] | None = None,
        on_busy: str | None = None,
        labels: Mapping[str, str] | None = None,
        timeout_ms: int | None = None,
    ) -> "RunHandle":
        """Start a run and return once it is durable; without `session` it has one of its own.

        With the same `request_id` and text this is the same run; unasked a new id is minted.
        """
        ask = asking.start_run(
            agent, text, session=session, request_id=request_id, context=context,
            on_busy=on_busy, labels=labels, timeout_ms=timeout_ms,
        )  # fmt: skip
        run = self.ask(ask)
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
        patience = Patience(self.timeouts.give_up)
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
        self._following = following.Following(run_id, after)
        self._patience = Patience(client.timeouts.give_up)
        self._ready: deque[RunEvent] = deque()
        self._answer: httpx.Response | None = None
        self._pieces: Iterator[bytes] | None = None

    def __repr__(self) -> str:
        return f"<RunHandle {self.run_id} after {self._following.seq}>"

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> RunEvent:
        while not self._ready:
            if self._following.ended:
                raise StopIteration
            self._read()
        return self._ready.popleft()

    def deltas(self) -> Generator[str, None, None]:
        """Yield the words of the answer; after an `agent_invoke_retrying` they begin again."""
        for event in self:
            if event.text:
                yield event.text

    def result(self) -> RunResult:
        """Wait for the end; raises RunFailed or RunCancelled."""
        for _ in self:
            pass
        found = self._following.result()
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
        failure: Exception | None = None
        try:
            if self._pieces is None:
                self._open()
            elif data := next(self._pieces, b""):
                self._take(data)
                if not self._following.ended:
                    return
            else:
                failure = httpx.ReadError("the stream ended before the run")
        except (httpx.TransportError, APIError) as error:
            failure = error
        except BaseException:
            self.close()
            raise
        if failure is not None or self._following.ended:
            self.close()
        if failure is not None:
            time.sleep(self._patience.after(failure))

    def _take(self, data: bytes) -> None:
        self._patience.progressed()
        self._ready.extend(self._following.feed(data))

    def _open(self) -> None:
        query, headers = self._following.request()
        http = self._client.http
        answer = http.send(
            http.build_request(
                "GET", self._following.path, params=query, headers=headers,
                timeout=self._client.timeouts.of_streams(),
            ),
            stream=True,
        )  # fmt: skip
        self._answer = answer
        body = b"" if answer.status_code == following.OK else answer.read()
        if self._following.opened(answer.status_code, answer.headers, body):
            self._pieces = answer.iter_raw()
