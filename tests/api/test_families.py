"""Over HTTP: messages for a busy session, agents that call agents, the stream of a session."""

import asyncio
from typing import Any

import pytest

from orchestrator.core.frames import Delta, Done
from orchestrator.ports import AgentCall
from orchestrator.testing.engine_rig import Frames

from ..engine.rig import hang, until
from .conftest import Client, Database, serving

MESSAGE = {"input_message": {"content": "hi"}}


async def invoked(api: Client, path: str = "/internal/invoke", **fields: Any) -> Any:
    body = {"session_id": "s", "agent_id": "demo", **MESSAGE, **fields}
    return await api.post(path, body)


async def test_a_busy_session_names_the_run_that_holds_it(database: Database) -> None:
    async with serving(database, hang) as api:
        holder = (await invoked(api)).json["run_id"]
        for path in ("/internal/invoke", "/v1/runs"):
            busy = await invoked(api, path, on_busy="reject")
            assert (busy.status, busy.json["code"]) == (409, "session_busy")
            assert busy.json["details"]["run_id"] == holder
            wrong = await invoked(api, path, on_busy="push")
            assert (wrong.status, wrong.json["code"]) == (400, "invalid_request")
        queued = (await invoked(api)).json["run_id"]
        listed = (await api.get("/v1/runs?session_id=s&status=created")).json["runs"]
        assert [run["run_id"] for run in listed] == [queued]
        beside = (await invoked(api, "/v1/runs", on_busy="parallel")).json
        assert beside["parallel"] is True
        urgent = (await invoked(api, on_busy="interrupt")).json["run_id"]
        for run_id in (holder, queued, beside["run_id"]):
            run = (await api.get(f"/v1/runs/{run_id}")).json
            assert (run["status"], run["error"]["message"]) == ("CANCELLED", "interrupted")
        await until(lambda: api.rig.agent.calls[-1].run_id == urgent)


async def test_a_ring_is_answered_with_its_path(database: Database) -> None:
    async with serving(database, hang) as api:
        run_id = (await invoked(api)).json["run_id"]
        await until(lambda: api.rig.agent.open_now == 1)
        body = {**MESSAGE, "parent_run_id": run_id}
        ring = await api.post("/v1/agents/demo:invoke", body)
        assert (ring.status, ring.json["code"]) == (409, "agent_cycle")
        assert ring.json["details"]["path"] == ["demo", "demo"]


CALL = "/v1/agents/below:invoke"


async def calling(api: Client) -> dict[str, Any]:
    """Return the body of a call that a run at work may make."""
    await api.rig.register("below")
    parent = (await invoked(api)).json["run_id"]
    await until(lambda: api.rig.agent.open_now == 1)
    return {**MESSAGE, "parent_run_id": parent, "idempotency_key": "k"}


async def test_a_call_that_was_cut_is_made_anew_with_the_same_key(database: Database) -> None:
    async def script(call: AgentCall) -> Frames:
        yield [Delta("word")]
        if call.agent_id == "demo" or not patient:
            await asyncio.Event().wait()
        yield [Done("whole")]

    patient: list[bool] = []
    async with serving(database, script) as api:
        body = await calling(api)
        async with api.open("POST", CALL, body) as (_, headers, _):
            child = headers["x-run-id"]
            await until(lambda: api.rig.agent.open_now == 2)
        await until(lambda: child in api.rig.agent.closed)
        ended = (await api.get(f"/v1/runs/{child}")).json
        assert (ended["status"], ended["error"]["message"]) == ("CANCELLED", "the caller hung up")
        patient.append(True)
        again = await api.post(CALL, body)
        assert again.headers["x-run-id"] != child
        assert b"whole" in again.raw
        assert (await api.post(CALL, body)).headers["x-run-id"] == again.headers["x-run-id"]
        tree = (await api.get(f"/v1/runs/{body['parent_run_id']}/tree")).json
        assert [node["run"]["status"] for node in tree["children"]] == ["CANCELLED", "DONE"]
        assert "has_more" not in tree
        below = await api.get(f"/v1/runs?parent_run_id={body['parent_run_id']}")
        assert len(below.json["runs"]) == 2


async def test_a_cut_call_ends_nothing_while_another_waits_for_the_same(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []
    async with serving(database, hang) as api:
        hung_up = api.rig.engine.runs.hung_up

        async def noted(run_id: str, tenant: str) -> None:
            await hung_up(run_id, tenant)
            heard.append(run_id)

        monkeypatch.setattr(api.rig.engine.runs, "hung_up", noted)
        body = await calling(api)
        async with api.open("POST", CALL, body) as first:
            child = first[1]["x-run-id"]
            async with api.open("POST", CALL, body) as second:
                assert second[1]["x-run-id"] == child
                await second[2].readuntil(b"\n\n")
            await until(lambda: heard == [child])
            assert (await api.get(f"/v1/runs/{child}")).json["status"] == "RUNNING"
        await until(lambda: heard == [child] * 2)
        assert (await api.get(f"/v1/runs/{child}")).json["status"] == "CANCELLED"


@pytest.mark.parametrize("name", ["limit", "types", "after_ts", "after_seq"])
async def test_a_sessions_stream_takes_no_words_of_a_page(api: Client, name: str) -> None:
    answer = await api.get(f"/v1/sessions/s/events?{name}=1")
    assert answer.status == 400
    assert name in answer.json["error"]


async def test_a_session_says_where_its_stream_is_now(database: Database) -> None:
    async def script(call: AgentCall) -> Frames:
        yield [Delta(f"early {call.content}")]
        if call.content == "one":
            await go_on.wait()
        yield [Delta(f"late {call.content}"), Done()]

    go_on = asyncio.Event()
    async with serving(database, script) as api:
        assert (await api.get("/v1/sessions/s")).json["code"] == "session_not_found"
        over = await say(api, "zero")
        await api.rig.engine.runs.wait(over, 10)
        one, two = await say(api, "one"), await say(api, "two")
        await api.rig.once(await api.rig.engine.runs.get(one), lambda run: run.head == 4)
        cursor = (await api.get("/v1/sessions/s")).json["cursor"]
        assert "cursor" not in (await api.get("/v1/sessions")).json["sessions"][0]
        go_on.set()
        got = b""
        async with api.open("GET", f"/v1/sessions/s/events?cursor={cursor}") as (_, _, reader):
            for run_id in (one, two):
                got += await reader.readuntil(b"event: run_done\n") + await reader.readline()
                assert run_id.encode() in got.rsplit(b"data: ", 1)[1]
        words = [line[:5] for line in got.split(b'"text":"')[1:]]
        assert words == [b"late ", b"early", b"late "], "what was there before does not come"
        assert over.encode() not in got


async def say(api: Client, content: str) -> str:
    return str((await invoked(api, input_message={"content": content})).json["run_id"])
