"""The requests of the contract that both clients make, without I/O."""

import secrets
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final, Generic, TypedDict, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from orchestrator_sdk import shapes, sse
from orchestrator_sdk.errors import ProtocolError, api_error, is_good
from orchestrator_sdk.frames import Content
from orchestrator_sdk.secret import Secret, secret

T = TypeVar("T")
_SAID: Final = 200


class Ask(msgspec.Struct, Generic[T], frozen=True):
    """One request and the type of its answer; every one of them may be sent again."""

    method: str
    path: str
    answer: type[T]
    body: dict[str, Any] | None = None
    query: dict[str, Any] = {}

    def content(self) -> bytes | None:
        """Return the body's bytes."""
        return None if self.body is None else sse.encode(self.body)

    def taken(self, status: int, headers: Mapping[str, str], body: bytes) -> T:
        """Return the answer; raises APIError, or ProtocolError where it is another's."""
        if not is_good(status):
            raise api_error(status, headers, body)
        try:
            return msgspec.json.decode(body, type=self.answer)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            said = body[:_SAID].decode("utf-8", "replace")
            raise ProtocolError(
                f"{self.method} {self.path} was not answered by the orchestrator: {error}: {said}"
            ) from error


def headers(key: str | Secret | None) -> dict[str, str]:
    """Return what every request carries; raises ValueError for a key that no header can carry."""
    shown = secret(key)
    common = {"Content-Type": "application/json", "Accept": "application/json"}
    if not shown:
        return common
    text = shown.reveal().strip()  # a file's last line end is no part of the key in it
    if not (text.isascii() and text.isprintable()):
        raise ValueError("the key has a character that no key has; was something else pasted?")
    return common | {"Authorization": f"Bearer {text}"}


class Starting(TypedDict, total=False):
    """What may be said of a new run.

    Without `session` it has one of its own. With the same `request_id` and text it is the same run;
    unasked a new id is minted. The others are the contract's.
    """

    session: str | None
    request_id: str | None
    context: Mapping[str, Any] | None
    on_busy: str | None
    labels: Mapping[str, str] | None
    timeout_ms: int | None


def start_run(agent: str, content: Content, how: Starting) -> Ask[shapes.RunInfo]:
    """Return the invocation of an agent; it has a request id, so that it can be repeated."""
    if unknown := how.keys() - Starting.__annotations__.keys():
        raise TypeError(
            f"run() takes no {', '.join(sorted(unknown))}; it takes "
            + ", ".join(sorted(Starting.__annotations__))
        )
    body = {
        **how,
        "session": None,
        "agent_id": agent,
        "input_message": {"role": "user", "content": content},
        "session_id": how.get("session"),
        "request_id": how.get("request_id") or f"req_{secrets.token_hex(16)}",
    }
    return Ask("POST", "/v1/runs", shapes.RunInfo, given(body))


def get_run(run_id: str) -> Ask[shapes.RunInfo]:
    return Ask("GET", f"/v1/runs/{part(run_id)}", shapes.RunInfo)


def cancel_run(run_id: str, reason: str | None) -> Ask[dict[str, Any]]:
    body = given({"reason": reason})
    return Ask("POST", f"/v1/runs/{part(run_id)}/cancel", dict[str, Any], body)


def list_events(run_id: str, after_seq: int, limit: int) -> Ask[shapes.EventPage]:
    query = {"after_seq": after_seq, "limit": limit}
    return Ask("GET", f"/v1/runs/{part(run_id)}/events", shapes.EventPage, None, query)


def list_messages(session: str, limit: int, before: str | None) -> Ask[shapes.MessagePage]:
    query = given({"limit": limit, "before": before})
    return Ask("GET", f"/v1/sessions/{part(session)}/messages", shapes.MessagePage, None, query)


def list_agents(capability: str | None, status: str | None) -> Ask[shapes.AgentList]:
    query = given({"capability": capability, "status": status})
    return Ask("GET", "/v1/agents", shapes.AgentList, None, query)


def register(
    agent_id: str, name: str, endpoint: str, fields: Mapping[str, Any]
) -> Ask[dict[str, Any]]:
    body = {**fields, "agent_id": agent_id, "name": name, "endpoint": endpoint}
    return Ask("POST", "/v1/agents/register", dict[str, Any], given(body))


def about_agent(agent_id: str, verb: str, instance_id: str | None) -> Ask[dict[str, Any]]:
    """Return a heartbeat or drain."""
    path = f"/v1/agents/{part(agent_id)}/{verb}"
    return Ask("POST", path, dict[str, Any], given({"instance_id": instance_id}))


def given(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that are not None."""
    return {name: value for name, value in fields.items() if value is not None}


def part(text: str) -> str:
    """Return a name as one part of a path."""
    return quote(text, safe="")


def base(url: str) -> str:
    """Return the address of a server without its last slash; raises ValueError."""
    with suppress(httpx.InvalidURL):
        parsed = httpx.URL(url)
        if parsed.scheme in {"http", "https"} and parsed.host and not parsed.query:
            return url.partition("#")[0].rstrip("/")
    raise ValueError(
        f"{url!r} is not the address of an orchestrator, such as http://localhost:8080"
    )
