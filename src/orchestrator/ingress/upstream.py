"""The orchestrator as the ingress sees it: the routes of the contract, nothing else."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from orchestrator.clients.exchange import HTTP, Answer, ExchangeFailed, Request, read_all
from orchestrator.clients.sse import LineTooLong, SSEEvent, SSEParser
from orchestrator.core.secret import Secret
from orchestrator.core.states import OPEN
from orchestrator.ingress.problems import Away, Problem, refusal

T = TypeVar("T")

CALL_S: Final = 30.0
"""How long an answer may take."""
SILENCE_S: Final = 60.0
"""How long a stream may say nothing; the orchestrator sends a comment every 15 s."""
BODY_MAX: Final = 80 << 20
"""Bytes of an answer: a page of a log whose events are as large as they may be."""
LINE_MAX: Final = 68 << 20
NOT_FOUND: Final = "session_not_found"
_OK, _BAD = 200, 300
_OPEN: Final = ",".join(sorted(OPEN))


class RunSeen(msgspec.Struct, frozen=True):
    """A run as the list of a session's runs has it."""

    run_id: str
    status: str
    last_seq: int
    created_at: int
    generation: int = 0


class SessionSeen(msgspec.Struct, frozen=True):
    """A session, and where its stream is now."""

    cursor: str = ""


class RunsPage(msgspec.Struct, frozen=True):
    """A page of a session's runs, newest first."""

    runs: list[RunSeen]
    has_more: bool
    next_cursor: str | None = None


class Void(msgspec.Struct, frozen=True):
    """Where a loss of power left a log."""

    after_seq: int


class EventsPage(msgspec.Struct, frozen=True):
    """A page of a run's log, its events as they are stored, and what it takes back before them."""

    events: list[msgspec.Raw]
    has_more: bool
    next_cursor: str
    log_reset: Void | None = None

    @property
    def generation(self) -> int:
        """Return the generation of the log, 0 for the first."""
        return int(self.next_cursor.partition(".")[2] or 0)


class _Refused(msgspec.Struct, frozen=True):
    error: Any = None
    code: str = "unknown"


class Upstream:
    """Calls the orchestrator; `bearer` is whoever's credential is shown, None for none."""

    def __init__(self, http: HTTP, url: str) -> None:
        self._http = http
        self._url = url.rstrip("/")

    async def runs(
        self, session_id: str, bearer: Secret | None, *, cursor: str | None = None, limit: int = 100
    ) -> RunsPage:
        """Return a page of the runs of a session; raises Problem."""
        asked = {"session_id": session_id, "limit": str(limit)}
        query = urlencode(asked | ({"cursor": cursor} if cursor else {}))
        raw = await self._asked("GET", f"/v1/runs?{query}", bearer)
        return _decoded(raw, RunsPage)

    async def open_runs(self, session_id: str, bearer: Secret | None) -> RunsPage:
        """Return the runs of a session that go on; raises Problem."""
        query = urlencode({"session_id": session_id, "limit": "1000", "status": _OPEN})
        return _decoded(await self._asked("GET", f"/v1/runs?{query}", bearer), RunsPage)

    async def session_cursor(self, session_id: str, bearer: Secret | None) -> str | None:
        """Return where a session's stream is now, None before anybody has spoken; raises Problem.

        An orchestrator that does not say it has the stream begin with the session: "".
        """
        try:
            raw = await self._asked("GET", f"/v1/sessions/{_quoted(session_id)}", bearer)
        except Problem as problem:
            if problem.cause == NOT_FOUND:
                return None
            raise
        return _decoded(raw, SessionSeen).cursor

    async def page(
        self, run_id: str, after: str, bearer: Secret | None, limit: int = 500
    ) -> EventsPage:
        """Return events of a run after `seq`, or `seq.generation`; raises Problem."""
        path = f"/v1/runs/{_quoted(run_id)}/events?cursor={after}&limit={limit}"
        return _decoded(await self._asked("GET", path, bearer), EventsPage)

    async def post(self, path: str, body: Mapping[str, Any], bearer: Secret | None) -> Any:
        """Have something done and return what is answered; raises Problem."""
        raw = await self._asked("POST", path, bearer, msgspec.json.encode(body))
        answer: Any = _decoded(raw, object)
        return answer

    async def _asked(
        self, method: str, path: str, bearer: Secret | None, body: bytes | None = None
    ) -> bytes:
        headers = _headers(bearer) | ({"Content-Type": "application/json"} if body else {})
        request = Request(
            method=method, url=self._url + path, headers=headers, body=body, timeout_s=CALL_S
        )
        try:
            async with self._http.open(request) as answer:
                raw = await read_all(answer, BODY_MAX)
                if raw is None:
                    raise Away(f"the orchestrator's answer is over {BODY_MAX} bytes")
                if not _OK <= answer.status < _BAD:
                    raise _problem(answer, raw)
                return raw
        except ExchangeFailed as error:
            raise Away(f"the orchestrator is away: {error.message}") from error

    @asynccontextmanager
    async def session_stream(
        self, session_id: str, cursor: str, bearer: Secret | None
    ) -> AsyncIterator[AsyncIterator[list[SSEEvent]]]:
        """Hand out what comes on the stream of a session; raises Problem, at its end too."""
        seen = {"Last-Event-ID": cursor} if cursor else {}
        request = Request(
            method="GET",
            url=f"{self._url}/v1/sessions/{_quoted(session_id)}/events",
            headers={"Accept": "text/event-stream", **_headers(bearer), **seen},
        )
        try:
            async with asyncio.timeout(CALL_S) as patience, self._http.open(request) as answer:
                if answer.status != _OK:
                    raise _problem(answer, await read_all(answer, BODY_MAX) or b"")
                patience.reschedule(None)
                yield _events(answer)
        except (ExchangeFailed, TimeoutError, LineTooLong) as error:
            raise Away(f"the stream of the session broke: {error}") from error


async def _events(answer: Answer) -> AsyncIterator[list[SSEEvent]]:
    parser = SSEParser(LINE_MAX)
    while True:
        async with asyncio.timeout(SILENCE_S):
            data = await answer.read()
        if not data:
            raise Away("the orchestrator ended the stream of the session")
        events = parser.feed(data)
        if events:
            yield events


def _headers(bearer: Secret | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {bearer.reveal()}"} if bearer is not None else {}


def _quoted(part: str) -> str:
    return quote(part, safe="")


def _decoded(raw: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.MsgspecError as error:
        raise Away(f"the orchestrator's answer is none of the contract's: {error}") from error


def _problem(answer: Answer, raw: bytes) -> Problem:
    try:
        told = msgspec.json.decode(raw, type=_Refused)
    except msgspec.MsgspecError:
        told = _Refused()
    text = told.error if isinstance(told.error, str) else f"it answered {answer.status}"
    return refusal(answer.status, told.code, text)
