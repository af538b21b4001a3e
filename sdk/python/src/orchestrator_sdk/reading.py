"""A run as it is being read: all that both handles do but the reading and waiting itself."""

from collections import deque
from typing import Final

import httpx

from orchestrator_sdk.following import Following
from orchestrator_sdk.frames import text_of
from orchestrator_sdk.shapes import RunEvent
from orchestrator_sdk.transport import Timeouts, patience

_BEGINNINGS: Final = frozenset({"run_started", "agent_invoke_retrying"})


class Reading:
    """Where one handle stands: what has come and was not handed out, and what to ask for next."""

    def __init__(
        self,
        http: httpx.Client | httpx.AsyncClient,
        timeouts: Timeouts,
        run_id: str,
        after_seq: int,
    ) -> None:
        self.following = Following(run_id, after_seq)
        self.patience = patience(http, timeouts)
        self._http = http
        self._timeouts = timeouts
        self._ready: deque[RunEvent] = deque()
        self._silent = False

    def next(self) -> RunEvent | None:
        """Return the next event of those that are here."""
        if not self._ready:
            return None
        event = self._ready.popleft()
        self._silent = (self._silent or event.type in _BEGINNINGS) and not event.text
        return event

    def words(self, event: RunEvent) -> str:
        """Return the words in the event that came last.

        An agent that said all of them with its end is heard there, as far as it was followed from
        its beginning.
        """
        if event.type == "agent_invoke_done" and self._silent:
            return text_of(event.payload.get("final_message"))
        return event.text

    def request(self) -> httpx.Request:
        """Return the request for the stream from here on."""
        query, headers = self.following.request()
        return self._http.build_request(
            "GET", self.following.path, params=query, headers=headers,
            timeout=self._timeouts.of_streams(),
        )  # fmt: skip

    def take(self, data: bytes) -> None:
        """Take what came; nothing at all is the end of the stream, and raises httpx.ReadError."""
        if not data:
            raise httpx.ReadError("the stream ended before the run")
        self.patience.progressed()
        self._ready.extend(self.following.feed(data))
