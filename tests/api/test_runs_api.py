"""Runs over HTTP, as the contract says: what is asked, what is answered, in which words."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import pytest

from orchestrator.core.frames import Delta, Done, Frame, State
from orchestrator.core.states import RunState
from orchestrator.ports import AgentCall

from ..engine.rig import until
from .conftest import Client, Database, invocation, serving

Frames = AsyncIterator[Sequence[Frame]]


async def hang(_: AgentCall) -> Frames:
    yield [Delta("one")]
    await asyncio.Event().wait()


async def _ended(api: Client, run_id: str) -> list[dict[str, Any]]:
    await api.rig.engine.runs.wait(run_id, 10)
    page = await api.get(f"/v1/runs/{run_id}/events?limit=1000")
    events: list[dict[str, Any]] = page.json["events"]
    return events


async def test_invoke_then_events_then_messages(api: Client) -> None:
    answer = await api.post("/internal/invoke", invocation())
    assert answer.status == 200
    assert set(answer.json) == {"run_id", "session_id", "agent_id"}
    events = await _ended(api, answer.json["run_id"])
    assert set(events[0]) == {"event_id", "run_id", "seq", "ts", "type", "payload"}
    assert [e["type"] for e in events][-2:] == ["agent_invoke_done", "run_done"]
    messages = (await api.get("/v1/sessions/s1/messages")).json
    assert messages["has_more"] is False
    assert [m["content"] for m in messages["messages"]] == ["hello", "you said: hello"]
    assert messages["messages"][0]["created_at"].endswith("Z")


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({}, "session_id is required"),
        ({"session_id": "s"}, "agent_id is required"),
        ({"session_id": "s", "agent_id": "demo"}, "input_message.content is required"),
        (invocation(""), "input_message.content is required"),
        (b"{", "invalid request body"),
        (b"[1]", "invalid request body"),
        ({"session_id": 5}, "invalid request body"),
    ],
)
async def test_what_is_missing_is_named_in_the_contracts_order(
    api: Client, body: Any, sentence: str
) -> None:
    answer = await api.post("/internal/invoke", body)
    assert (answer.status, answer.json["error"]) == (400, sentence)
    assert answer.json["code"] == "invalid_request"


async def test_an_unknown_agent_is_404_and_leaves_no_session(api: Client) -> None:
    answer = await api.post("/internal/invoke", invocation(agent_id="nobody"))
    assert (answer.status, answer.json["error"]) == (404, "agent nobody not found")
    assert (await api.get("/v1/sessions")).json["sessions"] == []
    assert (await api.get("/v1/sessions/s1/messages")).json == {"messages": [], "has_more": False}


async def test_a_key_in_body_or_header_means_one_run(api: Client) -> None:
    first = await api.post("/internal/invoke", invocation(request_id="k"))
    second = await api.post("/internal/invoke", invocation(), Idempotency_Key="k")
    assert second.json == first.json
    other = await api.post("/internal/invoke", invocation("other", request_id="k"))
    assert (other.status, other.json["code"]) == (409, "idempotency_key_reused")
    both = await api.post("/internal/invoke", invocation(request_id="k"), Idempotency_Key="x")
    assert both.status == 400


async def test_start_in_the_background_waiting_or_streaming(api: Client) -> None:
    body = {"agent_id": "demo", "input_message": {"content": "hi"}}
    made = await api.post("/v1/runs", body)
    assert made.status == 201
    assert made.json["session_id"].startswith("sess_")
    waited = await api.post("/v1/runs", body | {"wait": True})
    assert (waited.status, waited.json["status"]) == (200, "DONE")
    assert waited.json["final_message"] == "you said: hi"
    streamed = await api.post("/v1/runs", body | {"stream": True})
    assert streamed.headers["x-run-id"].startswith("run_")
    assert streamed.headers["cache-control"] == "no-store"
    assert streamed.headers["x-accel-buffering"] == "no"
    assert streamed.raw.count(b"event: run_done\n") == 1


async def test_waiting_is_bounded_and_names_the_run(database: Database) -> None:
    async with serving(database, hang, wait_s=0.05) as api:
        answer = await api.post("/v1/runs", invocation(wait=True))
        assert (answer.status, set(answer.json)) == (202, {"run_id"})


async def test_a_stream_is_the_log_byte_for_byte_and_resumes(api: Client) -> None:
    run_id = (await api.post("/internal/invoke", invocation())).json["run_id"]
    stream = (await api.get(f"/v1/runs/{run_id}/events/stream")).raw
    page = await api.get(f"/v1/runs/{run_id}/events")
    datas = [line[6:] for line in stream.split(b"\n") if line.startswith(b"data: ")]
    assert page.raw.startswith(b'{"events":[' + b",".join(datas) + b"]")
    ids = [int(line[4:]) for line in stream.split(b"\n") if line.startswith(b"id: ")]
    assert ids == list(range(1, len(datas) + 1))
    path = f"/v1/runs/{run_id}/events"
    rest = stream[stream.index(b"id: 4\n") :]
    for cursor in ("3", "3.0"):
        again = await api.get(path, Accept="text/event-stream", Last_Event_ID=cursor)
        assert again.raw == rest
    for query in ("after_seq=3", "cursor=3"):
        assert (await api.get(f"{path}/stream?{query}")).raw == rest
        assert (await api.get(f"{path}?{query}", Accept="text/event-stream")).raw == rest
    for query in ("types=run_done", "after_ts=1"):
        refused = await api.get(f"{path}?{query}", Accept="text/event-stream")
        assert (refused.status, "of a page" in refused.json["error"]) == (400, True)
    assert (await api.get(f"{path}/stream", Last_Event_ID=str(ids[-1]))).status == 204
    assert (await api.get(f"{path}/stream", Last_Event_ID="99")).status == 204
    assert (await api.get(f"{path}/stream", Last_Event_ID="x")).status == 400


async def test_pages_filter_and_go_on(api: Client) -> None:
    run_id = (await api.post("/internal/invoke", invocation())).json["run_id"]
    events = await _ended(api, run_id)
    path = f"/v1/runs/{run_id}/events"
    first = (await api.get(f"{path}?limit=3")).json
    assert (len(first["events"]), first["has_more"]) == (3, True)
    rest = (await api.get(f"{path}?cursor={first['next_cursor']}")).json
    assert (first["events"] + rest["events"], rest["has_more"]) == (events, False)
    ends = (await api.get(f"{path}?types=run_done,user_input")).json["events"]
    assert [e["type"] for e in ends] == ["user_input", "run_done"]
    later = (await api.get(f"{path}?after_ts={events[-1]['ts']}")).json
    assert later["events"] == []
    assert (await api.get(f"{path}?types=nonsense")).status == 400
    assert (await api.get(f"{path}?limit=0")).status == 400
    assert (await api.get("/v1/runs/run_none/events")).json["code"] == "run_not_found"


async def test_cancel_is_repeatable_and_a_finished_run_says_so(database: Database) -> None:
    async with serving(database, hang) as api:
        run_id = (await api.post("/internal/invoke", invocation())).json["run_id"]
        await until(lambda: api.rig.agent.open_now == 1)
        answer = await api.post(f"/internal/runs/{run_id}/cancel", {"reason": "enough"})
        assert answer.json == {"run_id": run_id, "status": "CANCELLED", "message": "enough"}
        for path in (f"/v1/runs/{run_id}:cancel", f"/v1/runs/{run_id}/cancel"):
            again = await api.call("POST", path)
            assert (again.status, again.json) == (200, answer.json)
        await until(lambda: api.rig.agent.open_now == 0, timeout_s=1)


async def test_a_run_that_ended_otherwise_cannot_be_cancelled(api: Client) -> None:
    run_id = (await api.post("/internal/invoke", invocation())).json["run_id"]
    await _ended(api, run_id)
    answer = await api.post(f"/v1/runs/{run_id}:cancel")
    assert (answer.status, answer.json["code"]) == (409, "run_ended")
    assert answer.json["details"] == {"status": "DONE"}


@pytest.mark.parametrize("on_disconnect", ["keep", "cancel"])
async def test_hanging_up_cancels_only_when_asked(database: Database, on_disconnect: str) -> None:
    async with serving(database, hang) as api:
        body = invocation(stream=True, on_disconnect=on_disconnect)
        async with api.open("POST", "/v1/runs", body) as (_, headers, reader):
            await reader.readuntil(b"event: agent_stream_delta")
        run = await api.rig.engine.runs.wait(headers["x-run-id"], 1)
        wanted = RunState.CANCELLED if on_disconnect == "cancel" else RunState.RUNNING
        assert run.status is wanted


@pytest.mark.parametrize("on_disconnect", ["keep", "cancel"])
async def test_hanging_up_while_waiting_cancels_only_when_asked(
    database: Database, on_disconnect: str
) -> None:
    async with serving(database, hang) as api:
        host, port = api.netloc.split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        body = msgspec.json.encode(invocation(wait=True, on_disconnect=on_disconnect))
        head = (
            f"POST /v1/runs HTTP/1.1\r\nHost: {api.netloc}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        await until(lambda: api.rig.agent.open_now == 1)
        writer.transport.abort()
        [run] = (await api.rig.engine.runs.find()).items
        ended = await api.rig.engine.runs.wait(run.run_id, 1)
        wanted = RunState.CANCELLED if on_disconnect == "cancel" else RunState.RUNNING
        assert ended.status is wanted


async def test_waiting_with_cancel_brings_the_end(api: Client) -> None:
    answer = await api.post("/v1/runs", invocation(wait=True, on_disconnect="cancel"))
    assert (answer.status, answer.json["status"]) == (200, "DONE")


async def test_comments_keep_a_silent_stream_open(database: Database) -> None:
    async with serving(database, hang, keep_alive_s=0.05) as api:
        run_id = (await api.post("/internal/invoke", invocation())).json["run_id"]
        async with api.open("GET", f"/v1/runs/{run_id}/events/stream") as (_, _, reader):
            for _ in range(3):
                async with asyncio.timeout(5):
                    await reader.readuntil(b": keep-alive\n\n")


async def test_an_open_run_is_not_run_again(database: Database) -> None:
    async with serving(database, hang) as api:
        run_id = (await api.post("/internal/invoke", invocation())).json["run_id"]
        answer = await api.post(f"/v1/runs/{run_id}:rerun")
        assert (answer.status, answer.json["code"]) == (409, "conflict")


async def test_a_key_without_a_session_means_one_run(api: Client) -> None:
    body = {"agent_id": "demo", "input_message": {"content": "hi"}, "request_id": "k"}
    first, again = await api.post("/v1/runs", body), await api.post("/v1/runs", body)
    assert (first.status, again.status) == (201, 200)
    assert first.json["run_id"] == again.json["run_id"]
    assert first.json["session_id"] == again.json["session_id"]


async def test_lists_trees_and_reruns(api: Client) -> None:
    run_id = (await api.post("/internal/invoke", invocation())).json["run_id"]
    await _ended(api, run_id)
    again = await api.post(f"/v1/runs/{run_id}:rerun")
    assert again.status == 201
    await _ended(api, again.json["run_id"])
    page = (await api.get("/v1/runs?status=done&limit=1")).json
    assert [run["run_id"] for run in page["runs"]] == [again.json["run_id"]]
    rest = (await api.get(f"/v1/runs?status=DONE&cursor={page['next_cursor']}")).json
    assert [run["run_id"] for run in rest["runs"]] == [run_id]
    assert (await api.get(f"/v1/runs/{run_id}/tree")).json["children"] == []
    assert (await api.get(f"/v1/runs/{run_id}")).json["status"] == "DONE"
    assert (await api.get("/v1/runs?status=nonsense")).status == 400
    sessions = (await api.get("/v1/sessions")).json["sessions"]
    assert [session["session_id"] for session in sessions] == ["s1"]
    assert (await api.get("/v1/sessions/s1")).json["user_id"] is None
    assert (await api.get("/v1/sessions/s2")).json["code"] == "session_not_found"


async def test_a_session_stream_has_all_its_runs_and_resumes(api: Client) -> None:
    run_id = ""
    for text in ("one", "two"):
        run_id = (await api.post("/internal/invoke", invocation(text))).json["run_id"]
        await _ended(api, run_id)
    async with api.open("GET", "/v1/sessions/s1/events") as (status, _, reader):
        assert status == 200
        first = await reader.readuntil(b"event: run_done\n")
    cursor = first.rsplit(b"id: ", 1)[1].split(b"\n")[0].decode()
    path = "/v1/sessions/s1/events"
    async with api.open("GET", path, Last_Event_ID=cursor) as (_, _, reader):
        second = await reader.readuntil(b"event: run_done\n")
    assert second.count(b"event: run_started") == 1
    assert run_id.encode() in second
    for wrong in (f"{path}?cursor=nonsense", f"/v1/sessions/s2/events?cursor={cursor}"):
        refused = await api.get(wrong)
        assert (refused.status, refused.json["code"]) == (400, "invalid_request"), wrong


async def test_messages_can_be_posted_and_paged(api: Client) -> None:
    for n in range(5):
        answer = await api.post("/v1/sessions/s/messages", {"role": "user", "content": f"m{n}"})
        assert (answer.status, set(answer.json)) == (200, {"message_id", "created_at"})
    page = (await api.get("/v1/sessions/s/messages?limit=2")).json
    assert [m["content"] for m in page["messages"]] == ["m3", "m4"]
    assert page["has_more"] is True
    before = page["messages"][0]["message_id"]
    page = (await api.get(f"/v1/sessions/s/messages?before={before}")).json
    assert [m["content"] for m in page["messages"]] == ["m0", "m1", "m2"]
    missing = await api.post("/v1/sessions/s/messages", {"content": "x"})
    assert missing.json["error"] == "role is required"


async def test_a_child_answers_in_the_frames_of_the_agent_protocol(database: Database) -> None:
    async def script(call: AgentCall) -> Frames:
        if call.content == "parent":
            yield [Delta("waiting")]
            await asyncio.Event().wait()
        yield [State("busy"), Delta("x"), Done(usage={"tokens": 1})]

    async with serving(database, script) as api:
        parent = (await api.post("/internal/invoke", invocation("parent"))).json["run_id"]
        await until(lambda: api.rig.agent.open_now == 1)
        body = {"parent_run_id": parent, "input_message": {"content": "child"}}
        await api.rig.register("below")
        answer = await api.post("/v1/agents/below:invoke", body)
        child = answer.headers["x-run-id"]
        names = [line for line in answer.raw.split(b"\n") if line.startswith(b"event: ")]
        assert names == [b"event: state", b"event: delta", b"event: done"]
        tree = (await api.get(f"/v1/runs/{parent}/tree")).json
        assert tree["children"][0]["run"]["run_id"] == child
        assert f'data: {{"text":"x","run_id":"{child}"}}'.encode() in answer.raw
        alone = await api.post("/v1/agents/demo/invoke", {"input_message": {"content": "x"}})
        assert b"event: done" in alone.raw
