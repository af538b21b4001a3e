"""A run as it is being read: all that both handles do but the reading and waiting itself."""

from collections import deque

import httpx

from orchestrator_sdk.following import Following
from orchestrator_sdk.shapes import RunEvent
from orchestrator_sdk.transport import Timeouts, patience


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

    def next(self) -> RunEvent | None:
        """Return the next event of those that are here."""
        return self._ready.popleft() if self._ready else None

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
