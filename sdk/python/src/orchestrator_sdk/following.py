"""Where a reader of one run stands, what it asks for next, and how the run ended; no I/O."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from orchestrator_sdk.asking import part
from orchestrator_sdk.errors import ProtocolError, api_error, ended_badly
from orchestrator_sdk.frames import Content
from orchestrator_sdk.shapes import LOG_RESET, TERMINAL, RunEvent, RunInfo, RunResult
from orchestrator_sdk.sse import STREAM, SSEEvent, SSEParser

OK: Final = 200
SEEN: Final = 204
EVENT_STREAM: Final = "text/event-stream"

_EVENTS: Final = msgspec.json.Decoder(RunEvent)


class Following:
    """Reads the stream of a run through any number of connections, each event once.

    A new connection begins with `request`, its answer goes to `opened`, its bytes to `feed`.
    `ended` says that nothing more comes.
    """

    def __init__(self, run_id: str, after_seq: int = 0) -> None:
        self.run_id = run_id
        self.seq = after_seq
        self.ended = False
        self.terminal: RunEvent | None = None
        self._id = ""
        self._final: Content | None = None
        self._parser = SSEParser()

    @property
    def path(self) -> str:
        """Return the path of the stream."""
        return f"/v1/runs/{part(self.run_id)}/events/stream"

    def request(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return the query and headers of the next connection.

        The id of the last event knows of which log it is; a bare seq is one of today's.
        """
        if self._id:
            return {}, STREAM | {"Last-Event-ID": self._id}
        return ({"after_seq": str(self.seq)} if self.seq else {}), STREAM

    def opened(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> bool:
        """Take the head of an answer; return whether a stream follows. Raises APIError."""
        if status == SEEN:
            self.ended = True
            return False
        if status != OK:
            raise api_error(status, headers, body)
        if not headers.get("content-type", "").startswith(EVENT_STREAM):
            raise ProtocolError(f"{self.path} was not answered with an event stream")
        if coding := headers.get("content-encoding"):
            raise ProtocolError(
                f"{self.path} was answered in {coding}, which was not asked for: keep what is on "
                "the way from compressing event streams"
            )
        self._parser = SSEParser()
        return True

    def feed(self, data: bytes) -> list[RunEvent]:
        """Return the events that `data` completes and that were not there before."""
        found = [self._taken(event) for event in self._parser.feed(data)]
        return [event for event in found if event is not None]

    def _taken(self, event: SSEEvent) -> RunEvent | None:
        if self.ended:
            return None
        if event.event == LOG_RESET:
            return self._reset(_object(event.data))
        taken = _event(event.data)
        if taken.seq <= self.seq:
            return None
        self.seq, self._id = taken.seq, event.id
        if "final_message" in taken.payload:
            self._final = taken.payload["final_message"]
        if taken.type in TERMINAL:
            self.ended, self.terminal = True, taken
        return taken

    def _reset(self, payload: dict[str, Any]) -> RunEvent:
        self.seq = min(self.seq, int(payload.get("after_seq", 0)))
        self._id, self._final = "", None
        return RunEvent(type=LOG_RESET, payload=payload, run_id=self.run_id)

    def result(self) -> RunResult | None:
        """Return how the run ended, None where its end was not seen.

        Raises RunFailed or RunCancelled.
        """
        if self.terminal is None:
            return None
        said = self.terminal.payload
        if self.terminal.type != "run_done":
            cancelled = self.terminal.type == "run_cancelled"
            raise ended_badly(said, self.run_id, cancelled=cancelled)
        final = self._final or ""
        return RunResult(run_id=self.run_id, final_message=final, usage=said.get("usage") or {})


def outcome(run: RunInfo) -> RunResult:
    """Return how a run ended that was only looked at; raises RunFailed or RunCancelled."""
    if run.status in {"FAILED", "CANCELLED"}:
        raise ended_badly(run.error or {}, run.run_id, cancelled=run.status == "CANCELLED")
    if run.status == "DONE":
        final = run.final_message or ""
        return RunResult(run_id=run.run_id, final_message=final, usage=run.usage or {})
    raise ProtocolError(f"the stream of {run.run_id} ended, but the run is {run.status}")


def _event(data: str) -> RunEvent:
    try:
        return _EVENTS.decode(data)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"an event of the stream is none of a run's log: {error}") from error


def _object(data: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise ProtocolError(f"the stream was reset by a frame that cannot be read: {error}") from (
            error
        )
