"""What an agent is told with each invocation, and how it calls other agents."""

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import httpx
import msgspec

from orchestrator_sdk import frames
from orchestrator_sdk.calling import ChildRun, Sending
from orchestrator_sdk.errors import OrchestratorError
from orchestrator_sdk.frames import Content
from orchestrator_sdk.secret import Secret, secret
from orchestrator_sdk.transport import agent_http

KEY_MAX: Final = 256


class Message(msgspec.Struct, frozen=True):
    """A line of a conversation."""

    role: str = "user"
    content: Content = ""

    @property
    def text(self) -> str:
        """Return the content as text; parts that are none are passed over."""
        return frames.text_of(self.content)


class Resume(msgspec.Struct, frozen=True):
    """Why an agent is called again after it paused: its own `state`, and what was decided."""

    state: Any = None
    results: list[dict[str, Any]] = []


class Invocation(msgspec.Struct, frozen=True):
    """The body of an invocation; fields we do not know are passed over."""

    input_message: Message
    agent_id: str = ""
    session_id: str = ""
    run_id: str = ""
    messages: list[Message] = []
    context: dict[str, Any] | None = None
    resume: Resume | None = None


class Context:
    """One invocation of an agent.

    `input_message` is what to answer, `messages` what was said before it, `context` what the
    caller gave along. `attempt` is 1, and more where the run is tried again. `run_token` proves to
    the platform at `platform_base_url` which run speaks; it never prints.
    """

    def __init__(self, told: Invocation, headers: Mapping[str, str]) -> None:
        self.agent_id = told.agent_id
        self.run_id = told.run_id or headers.get("x-run-id", "")
        self.session_id = told.session_id or headers.get("x-session-id", "")
        self.attempt = _number(headers.get("x-attempt", ""))
        self.input_message = told.input_message
        self.messages = told.messages
        self.context = told.context or {}
        self.resume = told.resume
        self.traceparent = headers.get("traceparent")
        self.platform_base_url = headers.get("x-platform-base-url", "").rstrip("/")
        self.run_token: Secret | None = secret(headers.get("x-run-token"))
        self._calls = 0
        self._http: httpx.AsyncClient | None = None

    def __repr__(self) -> str:
        return f"<Context of {self.run_id or 'no run'}, attempt {self.attempt}>"

    @property
    def text(self) -> str:
        """Return the message to answer as text."""
        return self.input_message.text

    def call(
        self,
        agent_id: str,
        message: Content,
        *,
        context: dict[str, Any] | None = None,
        key: str | None = None,
        timeout_ms: int | None = None,
    ) -> ChildRun:
        """Call another agent as a child of this run: await its text, or iterate over its words.

        The n-th call of a run has the same idempotency key in each of its attempts, so an agent
        that is asked again meets its child's earlier answer and not a second child. Where the order
        of calls varies, `key` names the call instead.
        """
        if not self.platform_base_url:
            raise OrchestratorError(
                "this invocation did not come through the orchestrator, so no other agent can be "
                "called: X-Platform-Base-URL is missing"
            )
        self._calls += 1
        named = f"{self.run_id}:{key or f'call-{self._calls}'}"
        if len(named) > KEY_MAX:
            named = hashlib.sha256(named.encode()).hexdigest()
        sending = Sending(
            base_url=self.platform_base_url,
            agent_id=agent_id,
            body={
                "input_message": {"role": "user", "content": message},
                "parent_run_id": self.run_id or None,
                "context": context,
                "timeout_ms": timeout_ms,
                "on_disconnect": "cancel",
            },
            key=named if self.run_id else None,
            headers=self.credentials(),
        )
        return ChildRun(self.http, sending)

    def credentials(self) -> dict[str, str]:
        """Return the headers that tell the platform which run speaks, and the trace it is in."""
        wanted = {
            "X-Run-Token": self.run_token.reveal() if self.run_token else None,
            "X-Run-ID": self.run_id,
            "traceparent": self.traceparent,
        }
        return {name: value for name, value in wanted.items() if value}

    def http(self) -> httpx.AsyncClient:
        """Return this invocation's connections to the platform; they end with it."""
        if self._http is None:
            self._http = agent_http()
        return self._http

    async def aclose(self) -> None:
        """Close the connections, which also cancels the children that still run."""
        if self._http is not None:
            await self._http.aclose()


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 1
