"""Messages of tools and approvals, before a server that answers them as the contract says."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
import pytest

from .rig import Device, Started, connected, device, health

ANSWERS: dict[str, tuple[int, dict[str, Any]]] = {
    "/v1/tools/register": (200, {"ok": True, "registered_count": 2}),
    "/v1/tool_calls/tc_1/claim": (200, {"tool_call_id": "tc_1"}),
    "/v1/tool_calls/tc_2/claim": (409, {"error": "another device has it", "code": "conflict"}),
    "/v1/tool_calls/tc_1/progress": (200, {}),
    "/v1/tool_calls/tc_1/result": (200, {"status": "succeeded"}),
    "/v1/tool_calls/tc_2/result": (409, {"error": "too late", "code": "tool_timeout"}),
    "/v1/approvals/ap_1/decide": (200, {}),
    "/v1/approvals/ap_2/decide": (410, {"error": "over", "code": "approval_expired"}),
}


class Server(BaseHTTPRequestHandler):
    """The routes of CONTRACT §6, sessions without runs, one with too many, and their streams."""

    protocol_version = "HTTP/1.1"
    asked: list[tuple[str, Any]] = []  # noqa: RUF012  # emptied by the fixture

    def do_GET(self) -> None:
        if "session_id=endless" in self.path:
            run = {"run_id": "run_1", "status": "DONE", "last_seq": 9, "created_at": 1}
            self._answer(200, {"runs": [run] * 1000, "has_more": True, "next_cursor": "c"})
            return
        if not self.path.endswith("/events"):
            self._answer(200, {"runs": [], "has_more": False})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        while not self.rfile.closed and self.rfile.read(1):
            pass

    def do_POST(self) -> None:
        body = msgspec.json.decode(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((self.path, body))
        self._answer(*ANSWERS[self.path])

    def _answer(self, status: int, told: dict[str, Any]) -> None:
        body = msgspec.json.encode(told)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def orchestrator() -> Iterator[str]:
    Server.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


async def _asked(one: Device, **message: Any) -> dict[str, Any]:
    await one.say(**message)
    return await one.take()


async def test_messages_of_tools_go_to_their_routes(
    orchestrator: str, start_ingress: Started
) -> None:
    running = start_ingress(orchestrator)
    tools = [{"name": "double"}, {"name": "half"}]
    call: dict[str, Any] = {"run_id": "run_1", "tool_call_id": "tc_1"}
    async with device(running, session_id="s") as one:
        told = await _asked(one, type="register_tools", tools=tools, request_id="r1")
        assert (told["type"], told["registered_count"], told["request_id"]) == ("ok", 2, "r1")
        assert (await _asked(one, type="tool_claim", **call))["tool_call_id"] == "tc_1"
        assert (await _asked(one, type="tool_progress", progress=0.5, **call))["type"] == "ok"
        await one.say(type="tool_result", ok=True, result=8, **call)
        late = await _asked(one, type="tool_result", ok=False, run_id="run_1", tool_call_id="tc_2")
        assert (late["type"], late["code"]) == ("error", "tool_timeout")
        lost = await _asked(one, type="tool_claim", tool_call_id="tc_2")
        assert (lost["code"], lost["cause"]) == ("invalid_request", "conflict")
        await one.say(type="approval_decision", approval_id="ap_1", decision="approve", reason="y")
        over = await _asked(one, type="approval_decision", approval_id="ap_2", decision="reject")
        assert (over["code"], over["cause"]) == ("approval_timeout", "approval_expired")
    asked = dict(Server.asked)
    assert asked["/v1/tools/register"]["tools"] == tools
    assert asked["/v1/tools/register"]["session_id"] == "s"
    assert asked["/v1/tool_calls/tc_1/result"] == {"ok": True, "result": 8, "run_id": "run_1"}
    assert asked["/v1/approvals/ap_1/decide"] == {"decision": "approve", "reason": "y"}


async def test_who_missed_more_than_is_told_is_in_no_session(
    orchestrator: str, start_ingress: Started
) -> None:
    running = start_ingress(orchestrator)
    async with connected(running) as one:
        refused = await one.hello(session_id="endless", cursor="start")
        assert (refused["type"], refused["code"]) == ("error", "invalid_request")
        assert "leave the cursor out" in refused["message"]
        assert health(running)["sessions"] == 0
        assert (await one.hello(session_id="endless"))["type"] == "hello_ack"
