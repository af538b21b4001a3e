"""Following: one run to its end, or whatever a session or an agent does."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeAlias
from urllib.parse import quote

import click

from orchestrator.cli import options, shapes
from orchestrator.cli.events import follow
from orchestrator.cli.failure import CommandFailed, Exit
from orchestrator.cli.output import Output
from orchestrator.cli.runs import OPEN
from orchestrator.cli.server import RETURN_S, Server
from orchestrator.clients.sse import SSEEvent

EVERY_S: Final = 1.0
"""How often it is looked whether an agent has new runs."""
AT_ONCE: Final = 32
"""How many runs of an agent are read at the same time; the next wait, and lose nothing."""
LATE_MS: Final = 60_000
"""How much older than the newest run one may be that is seen only now: servers have clocks."""
_WAITING: Final = 1000


@click.command()
@click.argument("run_id", metavar="[RUN]", required=False)
@click.option("--session", metavar="ID", help="Follow all runs of this session, from its first.")
@click.option("--agent", metavar="ID", help="Follow the open and all new runs of this agent.")
@click.option("--after", type=click.IntRange(min=0), metavar="N",
              help="Only events of RUN after this seq.")  # fmt: skip
@click.option("--words", is_flag=True, help="Show the conversation instead of the events.")
@options.as_json
@options.url
def tail(
    run_id: str | None, session: str | None, agent: str | None, after: int | None, words: bool,
    json: bool, url: str | None,
) -> Exit:  # fmt: skip
    """Follow RUN, live, to its end, or a session or an agent until Ctrl-C.

    Restarts of the server are waited for.
    """
    if sum(name is not None for name in (run_id, session, agent)) != 1:
        raise CommandFailed("name one thing to follow: a RUN, --session ID or --agent ID")
    if after is not None and run_id is None:
        raise CommandFailed("--after counts the events of one run, so it goes with a RUN only")
    if words and agent is not None:
        raise CommandFailed("--words goes with a RUN or --session: an agent's runs speak at once")
    server, out = options.server(url), Output(json=json)
    if run_id is not None:
        return follow(server.events(run_id, after or 0), out, talk=words)
    if session is not None:
        server.get(f"/v1/sessions/{quote(session, safe='')}", shapes.Session)
        return follow(server.session_events(session), out, talk=words, several=True)
    server.get(f"/v1/agents/{quote(agent or '', safe='')}", shapes.AgentDetail)
    return follow(_Followed(server, agent or "").events(), out, talk=False, several=True)


_Came: TypeAlias = SSEEvent | Exception


class _Followed:
    """The open and all new runs of an agent, each read by a thread of its own."""

    def __init__(self, server: Server, agent: str) -> None:
        self._server = server
        self._agent = agent
        self._came: queue.Queue[_Came] = queue.Queue(_WAITING)
        self._places = threading.BoundedSemaphore(AT_ONCE)
        self._seen: set[str] | None = None

    def events(self) -> Iterator[SSEEvent]:
        """Yield events as they come, in order per run; raises what ended the reading."""
        self._begin(self._look)
        while True:
            came = self._came.get()
            if isinstance(came, Exception):
                raise came
            yield came

    def _begin(self, act: Callable[..., None], *words: str) -> None:
        def guarded() -> None:
            try:
                act(*words)
            except Exception as error:  # noqa: BLE001  # raised where the events are read
                self._came.put(error)

        threading.Thread(target=guarded, daemon=True).start()

    def _look(self) -> None:
        """Look for new runs again and again; a server that restarts is waited for."""
        deadline = time.monotonic() + RETURN_S
        while True:
            try:
                news = self._news()
            except CommandFailed as problem:
                if problem.code is not Exit.UNREACHABLE or time.monotonic() > deadline:
                    raise
            else:
                deadline = time.monotonic() + RETURN_S
                for run_id in news:
                    self._places.acquire()
                    self._begin(self._read, run_id)
            time.sleep(EVERY_S)

    def _read(self, run_id: str) -> None:
        try:
            for event in self._server.events(run_id):
                self._came.put(event)
        finally:
            self._places.release()

    def _news(self) -> list[str]:
        """Return the runs that were not there before, oldest first; at first the open ones."""
        if self._seen is None:
            known = [run["run_id"] for run in self._runs(status=OPEN)]
            recent = {run["run_id"]: run for run in self._recent()}
            known = [n for n, run in recent.items() if not _ended(run) and n not in known] + known
            self._seen = {*known, *recent}
            return known[::-1]
        recent = {run["run_id"]: run for run in self._recent()}
        news = [run_id for run_id in recent if run_id not in self._seen]
        self._seen = set(recent)  # what is older never comes into sight again
        return news[::-1]

    def _recent(self) -> Iterator[dict[str, Any]]:
        newest: int | None = None
        for run in self._runs():
            newest = newest or run["created_at"]
            if run["created_at"] < newest - LATE_MS:
                return
            yield run

    def _runs(self, status: str | None = None) -> Iterator[dict[str, Any]]:
        return self._server.pages(
            "/v1/runs", "runs", shapes.Runs, agent_id=self._agent, status=status, limit=200
        )


def _ended(run: dict[str, Any]) -> bool:
    return run.get("ended_at") is not None
