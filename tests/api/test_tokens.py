"""Tokens of sessions and of attempts: what they open, and that they end with what they are for."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from orchestrator.core.frames import Delta, Done, Frame
from orchestrator.core.records import Retry
from orchestrator.ports import AgentCall

from ..engine.rig import until
from .conftest import Database, invocation, serving
from .keyed import ADMIN, bearer, ended_in_time, keyed, made_key, run_token, started, token_for


async def first_fails(call: AgentCall) -> AsyncIterator[Sequence[Frame]]:
    """End without a done the first time, stay the second time."""
    yield [Delta("a word")]
    if call.attempt > 1:
        await asyncio.Event().wait()


async def test_a_session_token_opens_its_session_and_no_other(database: Database) -> None:
    async with keyed(database) as api:
        mine, _ = await started(api, session_id="mine")
        theirs, _ = await started(api, session_id="theirs")
        token = await token_for(api, "mine", user_id="ann")
        shown = bearer(token)
        assert (await api.get(f"/v1/runs/{mine}", **shown)).status == 200
        assert (await api.get("/v1/sessions/mine/messages", **shown)).status == 200
        for path in (f"/v1/runs/{theirs}", f"/v1/runs/{theirs}/events", f"/v1/runs/{theirs}/tree",
                     "/v1/sessions/theirs", "/v1/sessions/theirs/messages",
                     "/v1/runs?session_id=theirs"):  # fmt: skip
            assert (await api.get(path, **shown)).status == 404, path
        assert (await api.post(f"/v1/runs/{theirs}:cancel", **shown)).status == 404
        for path in ("/v1/runs", "/v1/runs?session_id=mine"):
            listed = (await api.get(path, **shown)).json["runs"]
            assert [run["run_id"] for run in listed] == [mine]
        for path in ("/v1/sessions", "/v1/agents", "/v1/keys", "/metrics", "/v1/audit"):
            assert (await api.get(path, **shown)).status == 403, path
        answer = await api.post("/internal/invoke", invocation(session_id="theirs"), **shown)
        assert answer.status == 404


async def test_a_session_token_speaks_for_its_user_only(database: Database) -> None:
    async with keyed(database) as api:
        shown = bearer(await token_for(api, "s", user_id="ann"))
        body = invocation(session_id="s", context={"user_id": "bob"})
        assert (await api.post("/internal/invoke", body, **shown)).status == 403
        run = await api.post("/v1/runs", invocation(session_id=None), **shown)
        assert run.json["session_id"] == "s"
        await until(lambda: api.rig.agent.calls)
        assert api.rig.agent.calls[0].context == {"user_id": "ann"}


async def test_a_narrow_session_token_only_reads(database: Database) -> None:
    async with keyed(database) as api:
        run, _ = await started(api, session_id="s")
        shown = bearer(await token_for(api, "s", scopes=["read"]))
        assert (await api.get(f"/v1/runs/{run}", **shown)).status == 200
        answer = await api.post("/internal/invoke", invocation(session_id="s"), **shown)
        assert answer.status == 403
        bad = await api.post("/v1/sessions/s/tokens", {"scopes": ["all"]}, **bearer(ADMIN))
        assert bad.status == 400
        assert "read, tool_result" in bad.json["error"]


async def test_a_token_in_the_address_is_for_streams_and_no_key_goes_there(
    database: Database,
) -> None:
    async with keyed(database) as api:
        run, _ = await started(api, session_id="s")
        token = await token_for(api, "s")
        key = (await made_key(api))["key"]
        async with api.open("GET", f"/v1/runs/{run}/events/stream?token={token}") as answer:
            assert answer[0] == 200
            assert b"run_started" in await answer[2].readuntil(b"\n\n")
        assert (await api.get(f"/v1/runs/{run}?token={token}")).status == 400
        assert (await api.get(f"/v1/runs/{run}/events/stream?token={key}")).status == 401
        both = await api.get(f"/v1/runs/{run}/events/stream?token={token}", **bearer(ADMIN))
        assert both.status == 400


async def test_an_attempts_token_opens_its_own_run_and_those_below(database: Database) -> None:
    async with keyed(database) as api:
        await api.rig.register("below")
        run, call = await started(api, session_id="s")
        other, _ = await started(api, session_id="s2")
        shown = bearer(run_token(call))
        assert (await api.get(f"/v1/runs/{run}", **shown)).status == 200
        assert (await api.get(f"/v1/runs/{other}", **shown)).status == 404
        assert (await api.get("/v1/sessions/s/messages", **shown)).status == 200
        assert (await api.get("/v1/sessions/s2/messages", **shown)).status == 404
        assert (await api.post("/internal/invoke", invocation(), **shown)).status == 403
        child_body = {"input_message": {"content": "hi"}}
        async with api.open("POST", "/v1/agents/below:invoke", child_body, **shown) as answer:
            assert answer[0] == 200
            child = answer[1]["x-run-id"]
            await until(lambda: api.rig.agent.calls[-1].run_id == child)
            assert (await api.get(f"/v1/runs/{child}", **shown)).json["parent_run_id"] == run
            below = bearer(run_token(api.rig.agent.calls[-1]))
            assert (await api.get(f"/v1/runs/{run}", **below)).status == 404
            assert (await api.get("/v1/sessions/s/messages", **below)).status == 403
        foreign = child_body | {"parent_run_id": other}
        assert (await api.post("/v1/agents/below:invoke", foreign, **shown)).status == 404


async def test_a_childs_token_is_never_wider_than_its_parents(database: Database) -> None:
    async with keyed(database) as api:
        await api.rig.register("narrow", scopes=["agents:invoke", "runs:read"])
        _, call = await started(api, agent_id="narrow", session_id="s")
        shown = bearer(run_token(call))
        assert (await api.get("/v1/agents", **shown)).status == 403
        body = {"input_message": {"content": "hi"}}
        async with api.open("POST", "/v1/agents/demo:invoke", body, **shown) as answer:
            child = answer[1]["x-run-id"]
            await until(lambda: api.rig.agent.calls[-1].run_id == child)
            below = bearer(run_token(api.rig.agent.calls[-1]))
            assert (await api.get(f"/v1/runs/{child}", **below)).status == 200
            assert (await api.get("/v1/agents", **below)).status == 403  # demo's own may


@pytest.mark.parametrize("how", ["cancel", "end"])
async def test_an_ended_runs_token_opens_nothing_and_its_streams_end(
    database: Database, how: str
) -> None:
    leave = asyncio.Event()

    async def until_told(call: AgentCall) -> AsyncIterator[Sequence[Frame]]:
        yield [Delta("a word")]
        await leave.wait()
        yield [Done()]

    async with keyed(database, until_told) as api:
        run, call = await started(api, session_id="s")
        shown = bearer(run_token(call))
        stream = "/v1/sessions/s/events"  # which never ends by itself
        async with api.open("GET", stream, **shown) as (status, _, reader):
            assert status == 200
            await reader.readuntil(b"\n\n")
            if how == "cancel":
                await api.post(f"/v1/runs/{run}:cancel", **bearer(ADMIN))
            else:
                leave.set()
            await ended_in_time(reader)
        answer = await api.get(f"/v1/runs/{run}", **shown)
        assert (answer.status, answer.json["code"]) == (409, "run_not_active")


async def test_an_older_attempts_token_opens_nothing_and_its_streams_end(
    database: Database,
) -> None:
    async with keyed(database, first_fails) as api:
        await api.rig.register("again", retry=Retry(max_attempts=2, backoff_ms=2000))
        run, first = await started(api, agent_id="again", session_id="s")
        shown = bearer(run_token(first))
        # Between the attempts nobody is at work, and the token is refused already.
        await until(lambda: api.rig.agent.closed)
        async with asyncio.timeout(5):
            while (await api.get(f"/v1/runs/{run}", **shown)).status == 200:
                await asyncio.sleep(0.01)
        assert len(api.rig.agent.calls) == 1, "the second attempt came too early to tell"
        await until(lambda: len(api.rig.agent.calls) == 2)
        answer = await api.get(f"/v1/runs/{run}", **shown)
        assert (answer.status, answer.json["code"]) == (409, "stale_attempt")
        second = bearer(run_token(api.rig.agent.calls[1]))
        assert (await api.get(f"/v1/runs/{run}", **second)).status == 200


async def test_a_revoked_key_ends_its_streams_and_the_tokens_it_made(database: Database) -> None:
    async with keyed(database) as api:
        run, _ = await started(api, session_id="s")
        made = await made_key(api)
        key, key_id = made["key"], made["info"]["key_id"]
        token = await token_for(api, "s", key)
        path = f"/v1/runs/{run}/events/stream"
        async with (
            api.open("GET", path, **bearer(key)) as (first, _, by_key),
            api.open("GET", f"{path}?token={token}") as (second, _, by_token),
            api.open("GET", path, **bearer(ADMIN)) as (third, _, by_admin),
        ):
            assert (first, second, third) == (200, 200, 200)
            for reader in (by_key, by_token, by_admin):
                await reader.readuntil(b"\n\n")
            await api.post(f"/v1/keys/{key_id}:revoke", **bearer(ADMIN))
            await ended_in_time(by_key)
            await ended_in_time(by_token)
            assert not by_admin.at_eof()
        assert (await api.get(path, **bearer(key))).status == 401
        assert (await api.get(f"{path}?token={token}")).status == 401
        assert (await api.get(f"/v1/runs/{run}", **bearer(ADMIN))).json["status"] == "RUNNING"


async def test_who_waited_with_a_key_that_was_revoked_meanwhile_gets_nothing(
    database: Database,
) -> None:
    async with keyed(database) as api:
        made = await made_key(api)
        body = invocation(session_id="s", wait=True)
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(api.post("/v1/runs", body, **bearer(made["key"])))
            await until(lambda: api.rig.agent.calls)
            await api.post(f"/v1/keys/{made['info']['key_id']}:revoke", **bearer(ADMIN))
            run_id = api.rig.agent.calls[0].run_id
            await api.post(f"/v1/runs/{run_id}:cancel", **bearer(ADMIN))
        assert waiting.result().status == 401


async def test_an_agents_own_key_changes_no_other_agent(database: Database) -> None:
    async with keyed(database) as api:
        key = (await made_key(api, role="agent", agent_id="mine"))["key"]
        body = {"agent_id": "mine", "name": "m", "endpoint": "http://127.0.0.1:1"}
        assert (await api.post("/v1/agents/register", body, **bearer(key))).status == 200
        other = body | {"agent_id": "demo"}
        assert (await api.post("/v1/agents/register", other, **bearer(key))).status == 403
        for verb in ("heartbeat", "drain"):
            path = f"/v1/agents/demo/{verb}"
            assert (await api.post(path, **bearer(key))).status == 403, verb
            assert (await api.post(path.replace("demo", "mine"), **bearer(key))).status == 200
        assert (await api.call("DELETE", "/v1/agents/demo", **bearer(key))).status == 403


async def test_the_first_key_closes_a_server_without_keys(database: Database) -> None:
    async with serving(database) as api:
        assert (await api.get("/v1/runs")).status == 200
        refused = await api.post("/v1/keys", {"name": "n", "role": "viewer"})
        assert refused.status == 400
        assert "--role admin" in refused.json["error"]
        made = await api.post("/v1/keys", {"name": "n", "role": "admin"})
        assert (await api.get("/v1/runs")).status == 401
        assert (await api.get("/health")).status == 200
        key = made.json["key"]
        assert (await api.get("/v1/runs", **bearer(key))).status == 200
        key_id = made.json["info"]["key_id"]
        assert (await api.post(f"/v1/keys/{key_id}:revoke", **bearer(key))).status == 200
        assert (await api.get("/v1/runs")).status == 401  # and it does not open again
        assert (await api.get("/v1/runs", **bearer(key))).status == 401


async def test_a_limit_is_told_and_kept(database: Database) -> None:
    async with keyed(database) as api:
        key = (await made_key(api, limits={"list_runs": "2/h", "*": "5/h"}))["key"]
        told = [await api.get("/v1/runs", **bearer(key)) for _ in range(3)]
        assert [answer.status for answer in told] == [200, 200, 429]
        assert '"list_runs";r=1' in told[0].headers["ratelimit"]
        assert '"*";q=5;w=3600' in told[0].headers["ratelimit-policy"]
        assert int(told[2].headers["retry-after"]) > 0
        assert told[2].json["code"] == "rate_limited"
        assert (await api.get("/v1/agents", **bearer(key))).status == 200
