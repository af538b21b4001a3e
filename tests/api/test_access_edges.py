"""Ways around the rules that were found once, and are closed."""

import asyncio
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.core.access import ROLES, Caller
from orchestrator.core.credentials import SessionClaims
from orchestrator.testing.engine_rig import running

from ..engine.rig import until
from ..stores import Kept
from .conftest import Database, serving
from .keyed import ADMIN, bearer, ended_in_time, keyed, made_key, run_token, started, token_for

HELLO = {"input_message": {"content": "hi"}}


@pytest.fixture
def damage(kept_together: Kept, ground: Path) -> Callable[[str], object]:
    """Hand out what changes an entry behind the server's back."""
    return lambda change: kept_together.ask(
        ground / "o.db",
        f"UPDATE audit SET {change} WHERE seq = 2",  # noqa: S608  # our own words
    )


@pytest.mark.parametrize("change", ["detail = '{'", "detail = '[1]'"])
async def test_a_damaged_entry_stops_nobody(
    database: Database, damage: Callable[[str], object], change: str
) -> None:
    await _damaged(database, damage, change)


@pytest.mark.only_sqlite("PostgreSQL keeps no text that is none")
async def test_an_entry_that_is_no_text_stops_nobody(
    database: Database, damage: Callable[[str], object]
) -> None:
    await _damaged(database, damage, "actor = x'ff'")


async def _damaged(database: Database, damage: Callable[[str], object], change: str) -> None:
    async with keyed(database) as api:
        made = await made_key(api)
        damage(change)
        assert (await api.get("/v1/runs", **bearer("nobody's"))).status == 401
        await api.rig.engine.audit.flush(now=True)
        revoked = await api.post(f"/v1/keys/{made['info']['key_id']}:revoke", **bearer(ADMIN))
        assert revoked.status == 200
        found = (await api.get("/v1/audit/verify", **bearer(ADMIN))).json
        assert (found["ok"], found["broken_at"]) == (False, 2)


async def test_tokens_from_before_the_first_key_end_with_it_and_so_do_streams(
    database: Database,
) -> None:
    async with serving(database) as api:
        made = await api.post("/v1/sessions/s/tokens", {})
        token = made.json["token"]
        assert (await api.get("/v1/sessions/s/messages", **bearer(token))).status == 200
        async with api.open("GET", "/v1/sessions/s/events") as (status, _, reader):
            assert status == 200
            await api.post("/v1/keys", {"name": "n", "role": "admin"})
            await ended_in_time(reader)
        assert (await api.get("/v1/sessions/s/messages", **bearer(token))).status == 401


async def test_tokens_made_with_an_admin_key_end_when_it_is_another(database: Database) -> None:
    async with keyed(database) as api:
        token = await token_for(api, "s")
        assert (await api.get("/v1/sessions/s/messages", **bearer(token))).status == 200
    async with keyed(database, admin=secrets.token_hex(32)) as api:
        assert (await api.get("/v1/sessions/s/messages", **bearer(token))).status == 401


async def test_a_persons_token_lasts_no_longer_than_his_own(database: Database) -> None:
    async with running(database) as rig:
        ends = rig.store.now() + 5000
        ann = Caller(kind="person", tenant="default", name="person:ann",
                     permissions=ROLES["admin"], expires_at=ends)  # fmt: skip
        _, claims = await rig.engine.tokens.for_session("s", ann, scopes=["read"], ttl_s=3600)
        assert isinstance(claims, SessionClaims)
        assert claims.expires_at == ends


async def test_an_agents_key_makes_no_child_wider_than_the_run_above(database: Database) -> None:
    async with keyed(database) as api:
        await api.rig.register("narrow", scopes=["agents:invoke"])
        parent, _ = await started(api, agent_id="narrow", session_id="s")
        key = (await made_key(api, role="agent"))["key"]
        body = HELLO | {"parent_run_id": parent}
        async with api.open("POST", "/v1/agents/demo:invoke", body, **bearer(key)) as answer:
            child = answer[1]["x-run-id"]
            await until(lambda: api.rig.agent.calls[-1].run_id == child)
            below = bearer(run_token(api.rig.agent.calls[-1]))
            assert (await api.get(f"/v1/runs/{child}", **below)).status == 403
        # Nor does the agent widen itself by registering anew.
        again = {"agent_id": "narrow", "name": "n", "endpoint": "http://agent"}
        assert (await api.post("/v1/agents/register", again, **bearer(key))).status == 200
        told = (await api.get("/v1/agents/narrow", **bearer(ADMIN))).json
        assert told["scopes"] == ["agents:invoke"]


async def test_an_agents_key_begins_no_run_of_its_own_and_ends_no_others(
    database: Database,
) -> None:
    async with keyed(database) as api:
        key = (await made_key(api, role="agent"))["key"]
        alone = await api.post("/v1/agents/demo:invoke", HELLO, **bearer(key))
        assert alone.status == 403
        await api.rig.register("below")
        parent, _ = await started(api, session_id="s")
        body = HELLO | {"parent_run_id": parent, "idempotency_key": "k", "on_disconnect": "keep"}
        async with api.open("POST", "/v1/agents/below:invoke", body, **bearer(ADMIN)) as answer:
            child = answer[1]["x-run-id"]
        again = body | {"on_disconnect": "cancel"}
        async with api.open("POST", "/v1/agents/below:invoke", again, **bearer(key)) as answer:
            assert answer[1]["x-run-id"] == child
            await answer[2].readuntil(b"\n\n")
        await started(api, session_id="s2")  # time for the hang-up to be noticed
        assert (await api.get(f"/v1/runs/{child}", **bearer(ADMIN))).json["status"] == "RUNNING"


async def test_a_users_token_reruns_nobody_elses_run(database: Database) -> None:
    async with keyed(database) as api:
        bobs, _ = await started(api, session_id="s", context={"user_id": "bob"})
        await api.post(f"/v1/runs/{bobs}:cancel", **bearer(ADMIN))
        ann, bob = [bearer(await token_for(api, "s", user_id=who)) for who in ("ann", "bob")]
        assert (await api.post(f"/v1/runs/{bobs}:rerun", **ann)).status == 403
        assert (await api.post(f"/v1/runs/{bobs}:rerun", **bob)).status == 201


async def test_a_limit_holds_for_a_keys_tokens_and_names_a_route(database: Database) -> None:
    async with keyed(database) as api:
        key = (await made_key(api, limits={"*": "3/h"}))["key"]
        token = await token_for(api, "s", key)
        path = "/v1/sessions/s/messages"
        told = [(await api.get(path, **bearer(token))).status for _ in range(3)]
        assert told == [200, 200, 429]
        assert (await api.get(path, **bearer(key))).status == 429
        body = {"name": "n", "role": "viewer", "limits": {"start_runs": "1/m"}}
        typo = await api.post("/v1/keys", body, **bearer(ADMIN))
        assert typo.status == 400
        assert "'start_runs' is no route's name" in typo.json["error"]
        many = {f"r{number}": "1/m" for number in range(33)}
        assert (await api.post("/v1/keys", body | {"limits": many}, **bearer(ADMIN))).status == 400


async def test_what_a_routes_own_limit_refuses_costs_nothing_of_all(database: Database) -> None:
    async with keyed(database) as api:
        key = (await made_key(api, limits={"*": "4/h", "list_runs": "1/h"}))["key"]
        told = [(await api.get("/v1/runs", **bearer(key))).status for _ in range(6)]
        assert told == [200, *[429] * 5]
        left = [(await api.get("/v1/agents", **bearer(key))).status for _ in range(4)]
        assert left == [200, 200, 200, 429]


async def test_a_token_in_an_address_is_for_streams_only(database: Database) -> None:
    async with keyed(database) as api:
        run, _ = await started(api, session_id="s")
        token = await token_for(api, "s")
        page = f"/v1/runs/{run}/events?token={token}"
        assert (await api.get(page)).status == 400
        async with api.open("GET", page, Accept="text/event-stream") as (status, _, _):
            assert status == 200


async def test_a_token_that_nobody_could_use_is_not_made(database: Database) -> None:
    async with keyed(database) as api:
        long = "%F0%9F%98%80" * 250
        body = {"user_id": "😀" * 250}
        refused = await api.post(f"/v1/sessions/{long}/tokens", body, **bearer(ADMIN))
        assert refused.status == 400
        assert "too long, together" in refused.json["error"]


async def test_a_dead_token_is_in_the_audit(database: Database) -> None:
    async with keyed(database) as api:
        run, call = await started(api, session_id="s")
        await api.post(f"/v1/runs/{run}:cancel", **bearer(ADMIN))
        assert (await api.get(f"/v1/runs/{run}", **bearer(run_token(call)))).status == 409
        await api.rig.engine.audit.flush(now=True)
        path = "/v1/audit?action=security.dead_token"
        (entry,) = (await api.get(path, **bearer(ADMIN))).json["entries"]
        assert entry["target"] == "127.0.0.1 at get_run"


async def test_a_server_without_keys_minds_no_credential(database: Database) -> None:
    async with serving(database) as api:
        for shown in (
            {"Authorization": "Basic YTpi"},
            {"Authorization": "Bearer a", "X-API-Key": "b"},
        ):
            assert (await api.get("/v1/runs", **shown)).status == 200
        assert (await api.get("/v1/runs?token=abc")).status == 200
        assert (await api.get("/v1/runs", **bearer("ort_forged.x"))).status == 401


async def test_only_the_operator_names_a_tenant(database: Database) -> None:
    async with keyed(database) as api:
        acme = (await made_key(api, role="admin", tenant="acme"))["key"]
        for path in ("/v1/audit", "/v1/audit/verify"):
            theirs = await api.get(f"{path}?tenant=acme", **bearer(ADMIN))
            assert b"acme" in theirs.raw
            assert (await api.get(f"{path}?tenant=default", **bearer(acme))).status == 403
        assert (await api.get("/v1/audit/verify", **bearer(ADMIN))).json["tenants"] == [
            "acme",
            "default",
        ]
        assert "tenants" not in (await api.get("/v1/audit/verify", **bearer(acme))).json
        body = {"name": "n", "role": "viewer", "tenant": "default"}
        assert (await api.post("/v1/keys", body, **bearer(acme))).status == 403


async def test_others_have_their_turn_while_a_long_log_is_verified(database: Database) -> None:
    async with running(database) as rig:
        for number in range(2000):
            rig.engine.audit.security("bad_credential", str(number))
            if number % 200 == 199:
                await rig.engine.audit.flush(now=True)
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        async with asyncio.TaskGroup() as tasks:
            beside = tasks.create_task(others())
            verified = await rig.engine.audit.verify("default")
            beside.cancel()
        assert verified.broken_at is None
        assert verified.entries > 1500
        assert turns >= verified.entries // 500
