"""What happens in a golden database: a little of everything that a run can go through."""

import secrets
from collections.abc import Callable
from http.client import HTTPConnection
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec

from orchestrator.buses.local import LocalBus
from orchestrator.core.decide import Pause
from orchestrator.core.records import Run
from orchestrator.core.states import RunState
from orchestrator.engine.ledger import Ledger
from orchestrator.ports import Store
from orchestrator.world import RealWorld

from ..processes import Running, request, until

CENTURY_MS = "3155760000000"
ENDED = {"DONE", "FAILED", "CANCELLED"}
WORDS = 'Grüße, 世界 \U0001f44b \u2028 "\\\\" <&> \u0007'


class Story:
    """Tells a story to the servers of one database; each call of `start` begins another server.

    All secrets are made here and forgotten: what is kept in the database are their hashes.
    """

    def __init__(self, start: Callable[..., Running], agent: str, store: dict[str, str]) -> None:
        self._start = start
        self._agent = agent
        self._admin = secrets.token_hex(32)
        self._settings = store | {
            "ADMIN_KEY": self._admin,
            "SECRET_KEY": secrets.token_hex(32),
            "RUN_MAX_MS": CENTURY_MS,  # nothing falls due while the database lies in its folder
            "AGENT_TIMEOUT_MS": CENTURY_MS,
        }
        self._server = self._begin()
        self.to_pause: list[str] = []
        """Runs that are to be paused; no route does that yet."""

    def tell(self) -> None:
        """Do everything; at the end the server is killed in the middle of it."""
        self._people()
        self._agents()
        self._ended(self.run("count 20", session_id="old"))
        self._server.stop()
        self._server = self._begin(RETENTION_DELTAS="1s")
        until(lambda: '"retired"' in self._server.said(), "its deltas are removed", 60)
        self._server.stop()
        self._server = self._begin()
        self._past()
        self._present()
        self._server.kill()

    def run(self, content: Any, agent: str = "demo", **more: Any) -> str:
        """Begin a run and return its id."""
        body = {"agent_id": agent, "input_message": {"content": content}, **more}
        return str(self._post("/v1/runs", body)["run_id"])

    def _people(self) -> None:
        """Leave keys that are good, revoked and rotated, and audit entries with them."""
        made = [
            self._post("/v1/keys", {"name": name, "role": role})
            for name, role in (("Ада", "admin"), ("reader", "viewer"), ("gone", "ingress"))
        ]
        self._post(f"/v1/keys/{made[1]['info']['key_id']}:rotate", {"overlap_s": 3600})
        self._post(f"/v1/keys/{made[2]['info']['key_id']}:revoke", {})
        assert request("GET", f"{self._server.url}/v1/runs").status == 401

    def _agents(self) -> None:
        for agent_id, on_lost in (("demo", "fail"), ("keeper", "retry")):
            self._post("/v1/agents/register", {
                "agent_id": agent_id, "name": f"{agent_id} ☂", "endpoint": self._agent,
                "on_lost": on_lost, "retry": {"max_attempts": 2, "backoff_ms": 10},
                "capabilities": ["demo"], "timeouts": {"idle_ms": 60_000},
            })  # fmt: skip

    def _past(self) -> None:
        """Leave runs that ended, each in its own way."""
        talk: dict[str, Any] = {
            "session_id": "talk",
            "labels": {"kind": "golden"},
            "context": {"page": [1, None]},
        }
        for content in (
            "count 3", WORDS, "remember", "json", "think",
            [{"type": "text", "text": "remember"}, {"type": "text", "text": " parts"}],
        ):  # fmt: skip
            self._ended(self.run(content, **talk))
        self._ended(self.run("count 1000", session_id="séance"))
        alone = {"role": "user", "content": WORDS, "metadata": {"☂": None}}
        self._post(f"/v1/sessions/{quote('сессия ☂')}/messages", alone)
        for content in ("flaky", "crash", "fail"):
            self._ended(self.run(content, session_id="bad", request_id=f"once-{content}"))
        parent = self._at_work("tree")
        child = self._child(parent)
        self._post(f"/v1/runs/{parent}:cancel", {"reason": "enough ☂"})
        self._ended(parent)
        self._ended(child)

    def _present(self) -> None:
        """Leave runs that are open: at work, waiting for their turn, with a child, to be paused."""
        lost = self._at_work("lost")
        self._child(lost)
        self.run("count 4", session_id="lost")
        self._at_work("kept", "keeper")
        self.to_pause = [self._at_work(f"paused-{n}") for n in range(2)]

    def _at_work(self, session: str, agent: str = "demo") -> str:
        run_id = self.run("hang", agent, session_id=session)
        until(lambda: self._get(run_id)["last_seq"] >= 3, "the agent is called")
        return run_id

    def _child(self, parent: str) -> str:
        """Begin a run below another and leave its stream."""
        parts = urlsplit(self._server.url)
        body = {"parent_run_id": parent, "input_message": {"content": "hang"}}
        connection = HTTPConnection(parts.hostname or "", parts.port, timeout=30)
        try:
            connection.request(
                "POST", "/v1/agents/keeper:invoke",
                msgspec.json.encode(body | {"on_disconnect": "keep"}),
                self._shown | {"Content-Type": "application/json"},
            )  # fmt: skip
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            return answer.headers["X-Run-Id"]
        finally:
            connection.close()

    def _ended(self, run_id: str) -> None:
        until(lambda: self._get(run_id)["status"] in ENDED, f"{run_id} ends")

    def _get(self, run_id: str) -> Any:
        answer = request("GET", f"{self._server.url}/v1/runs/{run_id}", headers=self._shown)
        assert answer.status == 200, answer
        return answer.json()

    def _post(self, path: str, body: Any) -> Any:
        answer = request("POST", self._server.url + path, body, self._shown)
        assert answer.status < 300, answer
        return answer.json()

    @property
    def _shown(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._admin}"}

    def _begin(self, **more: str) -> Running:
        return self._start(**self._settings, **more)


async def pause(store: Store, run_ids: list[str]) -> None:
    """Pause runs for a tool and for an approval."""
    ledger = Ledger(store, LocalBus(), RealWorld())
    states = (RunState.PAUSED_WAITING_TOOL, RunState.PAUSED_WAITING_APPROVAL)
    for run_id, state in zip(run_ids, states, strict=True):
        run = await store.get(Run, run_id)
        assert run is not None
        await ledger.execute(run, Pause(state=state))
