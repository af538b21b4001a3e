"""A running server as the commands see it: requests, and streams that survive its restarts."""

import http.client
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any, Final
from urllib.parse import SplitResult, quote, urlencode, urlsplit

import click
import msgspec

from orchestrator.cli.failure import CommandFailed, Exit
from orchestrator.clients.sse import SSEEvent, SSEParser
from orchestrator.core.secret import Secret

REQUEST_S: Final = 60.0
SILENCE_S: Final = 45.0
"""A stream without so much as a comment for this long is dead: comments come every 15 s."""
RETURN_S: Final = 60.0
"""How long a stream tries to come back to a server that went away."""
TELL_S: Final = 2.0
"""After so long a person is told what is waited for."""
_PAUSE_S: Final = 0.5
_BROKEN: Final = (OSError, http.client.HTTPException)
_UNAUTHORIZED: Final = 401
_CODES: Final = {
    401: Exit.REFUSED,
    403: Exit.REFUSED,
    404: Exit.NOT_FOUND,
    409: Exit.REFUSED,
    410: Exit.NOT_FOUND,
    429: Exit.REFUSED,
}


class Server:
    """One server, by its URL; `key` is what it is shown."""

    def __init__(self, url: str, key: Secret | None = None) -> None:
        parts = _parts(url)
        if parts is None:
            raise CommandFailed(
                f"{url[:100]!r} is not the URL of a server",
                hint="ORCHESTRATOR_URL=http://localhost:8080",
            )
        self.url = url.rstrip("/")
        self._parts = parts
        self._shown = {"Authorization": f"Bearer {key.reveal()}"} if key else {}

    def get(self, path: str, shape: Any = dict, **query: Any) -> Any:
        """Return what a GET answers, if that has the shape."""
        given = {name: str(value) for name, value in query.items() if value is not None}
        return self._decoded("GET", f"{path}?{urlencode(given)}" if given else path, shape)

    def pages(self, path: str, field: str, shape: Any, **query: Any) -> Iterator[dict[str, Any]]:
        """Yield the items of every page of a list."""
        while True:
            page = self.get(path, shape, **query)
            yield from page[field]
            if not page["has_more"]:
                return
            query["cursor"] = page["next_cursor"]

    def post(self, path: str, body: dict[str, Any] | None = None, shape: Any = dict) -> Any:
        """Return what a POST answers, if that has the shape."""
        return self._decoded("POST", path, shape, {} if body is None else body)

    def delete(self, path: str) -> Any:
        """Return what a DELETE answers."""
        return self._decoded("DELETE", path, dict)

    def text(self, path: str) -> str:
        """Return the body of a GET as it is, also of an error answer."""
        return self._exchange("GET", path)[1].decode("utf-8", "replace")

    def events(self, run_id: str, after: int = 0) -> Iterator[SSEEvent]:
        """Yield a run's events after a seq, to its end, across lost connections and restarts.

        Raises CommandFailed when the server does not come back within RETURN_S.
        """
        path = f"/v1/runs/{quote(run_id, safe='')}/events/stream"
        return self._followed(path, str(after) if after else "", frozenset(ENDS))

    def session_events(self, session_id: str) -> Iterator[SSEEvent]:
        """Yield the events of all runs of a session, as `events` does, but without end."""
        path = f"/v1/sessions/{quote(session_id, safe='')}/events"
        return self._followed(path, "", frozenset())

    def _followed(self, path: str, cursor: str, ends: frozenset[str]) -> Iterator[SSEEvent]:
        deadline: float | None = None
        told = False
        while True:
            try:
                for event in self._stream(path, cursor, ends):
                    deadline, told = None, False
                    if event is not None:
                        cursor = event.id or cursor
                        yield event
            except _BROKEN as error:
                deadline = deadline or time.monotonic() + RETURN_S
                if time.monotonic() > deadline:
                    raise self._unreachable(error) from error
                if not told and time.monotonic() > deadline - RETURN_S + TELL_S:
                    told = True
                    waiting = f"{self.url} is away; waiting for it, {RETURN_S:.0f} s at most"
                    click.echo(f"\norchestrator: {waiting}", err=True)
                time.sleep(_PAUSE_S)
            else:
                return

    def _stream(self, path: str, cursor: str, ends: frozenset[str]) -> Iterator[SSEEvent | None]:
        """Yield None once the stream is open, then the events of one connection.

        Raises OSError where it ends before the log does, or the server is not there for now.
        """
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": cursor} if cursor else {})}
        with closing(self._connection(SILENCE_S)) as connection:
            answer = self._ask(connection, "GET", path, headers=headers)
            if answer.status == http.HTTPStatus.NO_CONTENT:
                return
            if answer.status >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
                raise ConnectionError(f"it answered {answer.status}")
            if answer.status != http.HTTPStatus.OK:
                self._refuse(answer.status, answer.read())
            if answer.headers.get_content_type() != "text/event-stream":
                raise self.stranger("without a stream")
            yield None
            parser = SSEParser(max_line=64 << 20)
            while data := answer.read1(65_536):
                for event in parser.feed(data):
                    yield event
                    if event.event in ends:
                        return
        raise ConnectionError("the stream ended before the run did")

    def _decoded(
        self, method: str, path: str, shape: Any, body: dict[str, Any] | None = None
    ) -> Any:
        status, data = self._exchange(method, path, body)
        if status >= http.HTTPStatus.BAD_REQUEST:
            self._refuse(status, data)
        try:
            value = msgspec.json.decode(data)
            msgspec.convert(value, shape)
        except (ValueError, RecursionError):
            raise self.stranger(str(status)) from None
        return value

    def stranger(self, said: str) -> CommandFailed:
        """Return the error for an answer that no orchestrator gives."""
        return CommandFailed(
            f"{self.url} answered {said}, and not as an orchestrator would",
            Exit.UNREACHABLE,
            "another program may listen there: ORCHESTRATOR_URL names the server",
        )

    def _exchange(
        self, method: str, path: str, body: dict[str, Any] | None = None
    ) -> tuple[int, bytes]:
        with closing(self._connection(REQUEST_S)) as connection:
            try:
                answer = self._ask(connection, method, path, body)
                return answer.status, answer.read()
            except _BROKEN as error:
                raise self._unreachable(error) from error

    def _connection(self, timeout_s: float) -> http.client.HTTPConnection:
        kind = (
            http.client.HTTPSConnection
            if self._parts.scheme == "https"
            else http.client.HTTPConnection
        )
        return kind(self._parts.hostname or "", self._parts.port, timeout=timeout_s)

    def _ask(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> http.client.HTTPResponse:
        data = None if body is None else msgspec.json.encode(body)
        sent = {"Content-Type": "application/json", **self._shown, **(headers or {})}
        connection.request(method, self._parts.path.rstrip("/") + path, data, sent)
        return connection.getresponse()

    def _refuse(self, status: int, data: bytes) -> None:
        """Raise CommandFailed for an error answer."""
        try:
            said = msgspec.json.decode(data)
            message, code = str(said["error"]), str(said.get("code", ""))
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
            raise self.stranger(str(status)) from None
        if code == "agent_draining":  # it is the agent that is away, not the server
            raise CommandFailed(message, Exit.REFUSED)
        if status >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
            raise CommandFailed(message, Exit.UNREACHABLE, f"docs/errors.md explains {code}")
        hint = "ORCHESTRATOR_KEY=ok_… is what a server is shown" if status == _UNAUTHORIZED else ""
        raise CommandFailed(message, _CODES.get(status, Exit.USAGE), hint)

    def _unreachable(self, error: Exception) -> CommandFailed:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return CommandFailed(
            f"no server answers at {self.url} ({reason})",
            Exit.UNREACHABLE,
            "start one with ./orchestrator, or name another: ORCHESTRATOR_URL=http://host:port",
        )


def _parts(url: str) -> SplitResult | None:
    """Return the parts of a server's URL, None for what is none."""
    try:
        parts = urlsplit(url)
        well = parts.port != 0 and bool((parts.hostname or "").encode("idna"))
    except ValueError:
        return None
    plain = url.isascii() and url.isprintable() and " " not in url
    return parts if well and plain and parts.scheme in ("http", "https") else None


ENDS: Final = {"run_done": Exit.OK, "run_failed": Exit.FAILED, "run_cancelled": Exit.CANCELLED}
"""The terminal events and the exit code each one means."""
