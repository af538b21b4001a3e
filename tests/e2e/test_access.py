"""Keys, tokens and people as a stranger meets them: real processes, the commands, and curl.

All of it is tried on both stores but what stands in front: prefixes, origins and proxies are judged
before a store is asked.
"""

import asyncio
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from secrets import token_hex
from typing import Any

import msgspec
import pytest

from orchestrator.testing.fake_idp import FakeIdP
from orchestrator.world import RealWorld

from ..processes import Running, until
from ..stores import Kept
from .callers import Curl, Talker, command, ended, invoke, refused, shown, talking
from .place import Place, place

HERE = "http://localhost:8080"
in_front = pytest.mark.only_sqlite("what stands in front is judged before a store is asked")
LEEWAY_S = 60
"""How far the clocks of an identity provider may be from ours."""
SOON_S = 2.0
"""A second is promised; a busy machine gets another one."""


@pytest.fixture
def here(tmp_path: Path, program: Callable[[str], Path], kept: Kept) -> Iterator[Place]:
    """Hand out a place of its own, in which a stranger types commands."""
    program("curl")
    with place(tmp_path, kept) as found:
        yield found


def status(here: Place, path: str, key: str = "", base: str = HERE) -> str:
    """Return the status of a GET."""
    shown = f'-H "Authorization: Bearer {key}"' if key else ""
    return here.run(f"curl -s -o /dev/null -w '%{{http_code}}' {shown} {base}{path}")


def start(here: Place, command: str = "./orchestrator", **env: str) -> Running:
    """Start the server and return once it answers."""
    server = here.start(command, "server", INGRESS_URL="off", **env)
    here.up(f"{HERE}/health")
    return server


def started(here: Place) -> dict[str, str]:
    """Start the server; return what must be set for a command to ask it and not its database."""
    start(here)
    # A database on PostgreSQL is opened beside its servers.
    return {"ORCHESTRATOR_URL": here.here(HERE)} if here.kept.postgres else {}


def elsewhere(here: Place) -> tuple[dict[str, str], str]:
    """Return settings with which others reach the server, and the address they would use."""
    if not here.prefix:  # this network is not ours alone: nobody may be let in, also in a test
        return {"AUTH_MODE": "keys"}, HERE
    here.run("ip addr add 192.0.2.7/32 dev lo")
    return {"HTTP_HOST": "192.0.2.7"}, "http://192.0.2.7:8080"


def test_who_lets_others_in_is_told_to_make_a_key_and_how(here: Place) -> None:
    wanted, base = elsewhere(here)
    said = here.run("./orchestrator 2>&1 || echo code $?", INGRESS_URL="off", **wanted)
    assert "there is no key yet" in said
    assert said.endswith("code 2\n")
    make, do_without = re.findall(r"(?:[A-Z_]+=\S+ )?\./orchestrator[^\n]*", said)
    key = here.run(make.replace("NAME", "alice"), **wanted).strip()
    assert key.startswith("ok_live_")
    server = here.start("./orchestrator", "server", INGRESS_URL="off", **wanted)
    here.up(f"{base}/health")
    assert status(here, "/v1/runs", base=base) == "401"
    assert status(here, "/v1/runs", key, base) == "200"
    server.stop()
    other = {"DATABASE_URL": "file:other.db"} | {k: v for k, v in wanted.items() if "HOST" in k}
    here.start(do_without, "open", INGRESS_URL="off", **other)
    here.up(f"{base}/health")
    assert status(here, "/v1/runs", base=base) == "200"


@pytest.mark.parametrize("running", [True, False], ids=["beside a server", "on the database"])
def test_the_commands_look_after_keys_log_and_secrets(here: Place, running: bool) -> None:
    named = started(here) if running else {}
    root = here.run("./orchestrator keys create --role admin root", **named).strip()
    shown = {"ORCHESTRATOR_KEY": root, **named} if running else {}
    old = here.run("./orchestrator keys create --role viewer --person ann a", **shown).strip()
    gone = here.run("./orchestrator keys create --role viewer b", **shown).strip()
    new = here.run(f"./orchestrator keys rotate {old.split('_')[2]} --overlap 1h", **shown).strip()
    assert "opens nothing now" in here.run(f"./orchestrator keys revoke {gone}", **shown)
    assert here.run("./orchestrator secrets rotate", **shown).startswith("0 secrets")
    listed = _lines(here.run("./orchestrator keys ls --json", **shown))
    assert [key["name"] for key in listed] == ["root", "a", "b", "a"]
    assert [key["key_id"] in new for key in listed] == [False, False, False, True]
    entries = _lines(here.run("./orchestrator audit ls --json", **shown))
    actions = [entry["action"] for entry in entries]
    assert actions == [*["key.create"] * 3, "key.rotate", "key.revoke", "secrets.rotate"]
    actor = f"key:{root.split('_')[2]}" if running else "local"
    assert {entry["actor"] for entry in entries[1:]} == {actor}
    head_of_chain = here.run("./orchestrator audit verify", **shown).splitlines()[-1]
    assert head_of_chain == entries[-1]["hash"]
    here.run(f"./orchestrator audit verify --head {head_of_chain}", **shown)
    if running:
        refused = here.run("./orchestrator keys ls 2>&1 || echo code $?", **named)
        assert refused.endswith("code 6\n")
        assert "ORCHESTRATOR_KEY" in refused
    else:
        start(here)
    opens = {key: status(here, "/v1/runs", key) for key in (root, old, new, gone)}
    assert opens == {root: "200", old: "200", new: "200", gone: "401"}


def _lines(text: str) -> list[Any]:
    return [msgspec.json.decode(line) for line in text.splitlines()]


def test_the_commands_know_their_database_whatever_the_server_would_ask(here: Place) -> None:
    for env in ({"AUTH_MODE": "keys"}, {"ADMIN_KEY": token_hex(32)}, {"HTTP_HOST": "192.0.2.7"}):
        made = here.run("./orchestrator keys create --role admin x", **env)
        assert made.startswith("ok_"), env
    assert len(here.run("./orchestrator keys ls", ADMIN_KEY=token_hex(32)).splitlines()) == 3


def test_a_rotated_key_goes_on_for_the_overlap(here: Place) -> None:
    old = here.run("./orchestrator keys create --role admin root").strip()
    named = started(here)
    shown = {"ORCHESTRATOR_KEY": old, **named}
    key_id = old.split("_")[2]
    new = here.run(f"./orchestrator keys rotate {key_id} --overlap 4s", **shown).strip()
    assert [status(here, "/v1/runs", key) for key in (old, new)] == ["200", "200"]
    until(lambda: status(here, "/v1/runs", old) == "401", "the overlap ends")
    assert status(here, "/v1/runs", new) == "200"
    shown = {"ORCHESTRATOR_KEY": new, **named}
    last = here.run(f"./orchestrator keys rotate {new.split('_')[2]} --overlap 0s", **shown).strip()
    assert [status(here, "/v1/runs", key) for key in (new, last)] == ["401", "200"]


# ------------------------------------------------------------ the end of keys and tokens


@pytest.fixture
def curl(tmp_path: Path, program: Callable[[str], Path]) -> Iterator[Curl]:
    program("curl")
    with ExitStack() as stack:
        yield Curl(tmp_path, stack)


async def test_a_revoked_key_is_refused_and_its_streams_end(
    start_server: Callable[..., Running], curl: Curl
) -> None:
    root = token_hex(32)
    curl.url = start_server(ADMIN_KEY=root).url
    _, made = await curl("/v1/keys", root, {"name": "shop", "role": "ingress"})
    key, key_id = made["key"], made["info"]["key_id"]
    _, made = await curl("/v1/sessions/s/tokens", key, {})
    token, session = made["token"], "/v1/sessions/s/events"
    async with talking(Talker()) as url:
        run_id = await invoke(curl, root, url)
        stream = f"/v1/runs/{run_id}/events/stream"
        roots = curl.follow("root", stream, root)
        readers = [
            curl.follow("run", stream, key),
            curl.follow("session", session, key),
            curl.follow("bearer", session, token),
            curl.follow("token", f"{session}?token={token}"),
        ]
        for reader in (*readers, roots):
            await reader.reads()
        code, _ = await curl(f"/v1/keys/{key_id}:revoke", root, {})
        since = time.monotonic()
        assert code == 200
        for good in (key, token):
            code, word, after = await refused(curl, "/v1/runs", good, since)
            assert (code, word) == (401, "unauthorized")
            assert after <= SOON_S
        for reader in readers:
            assert await reader.cut(since) <= SOON_S
        assert roots.process.poll() is None, "only what the key opened is cut"
        assert (await curl(f"/v1/runs/{run_id}", root))[1]["status"] == "RUNNING"


async def test_a_stream_ends_with_the_token_that_opened_it(
    start_server: Callable[..., Running], curl: Curl
) -> None:
    root = token_hex(32)
    curl.url = start_server(ADMIN_KEY=root).url
    async with talking(Talker()) as url:
        await invoke(curl, root, url)
        _, made = await curl("/v1/sessions/s/tokens", root, {"ttl_s": 4})
        ends = time.monotonic() + made["expires_at"] / 1000 - time.time()
        reader = curl.follow("token", f"/v1/sessions/s/events?token={made['token']}")
        await reader.reads()
        assert await reader.cut(ends) <= SOON_S
        assert (await curl("/v1/runs", made["token"]))[0] == 401


async def test_the_token_of_an_attempt_ends_with_it(
    start_server: Callable[..., Running], curl: Curl
) -> None:
    root, talker = token_hex(32), Talker(breaks=1)
    curl.url = start_server(ADMIN_KEY=root).url
    async with talking(talker) as url:
        run_id = await invoke(curl, root, url, retry={"max_attempts": 2, "backoff_ms": 1})
        path = f"/v1/runs/{run_id}"
        for attempt, why in enumerate(("stale_attempt", "run_not_active"), 1):
            token = await talker.called(attempt)
            reader = curl.follow(f"attempt{attempt}", f"{path}/events/stream", token)
            await reader.reads(f'"attempt":{attempt}')
            assert (await curl(path, token))[0] == 200
            talker.go.set()
            since = time.monotonic()
            code, word, after = await refused(curl, path, token, since)
            assert (code, word) == (409, why)
            assert after <= SOON_S
            assert await reader.cut(since) <= SOON_S
        assert (await ended(curl, root, run_id))["attempt"] == 2
        for token in talker.tokens:
            assert (await curl(path, token))[1]["code"] == "run_not_active"


# ------------------------------------------------------------ secrets


@pytest.mark.parametrize("running", [True, False], ids=["beside a server", "on the database"])
async def test_an_old_secret_key_may_go_once_secrets_are_rotated(
    start_server: Callable[..., Running], curl: Curl, tmp_path: Path, kept: Kept, running: bool
) -> None:
    old, new, root, token = (token_hex(32) for _ in range(4))
    both, talker = f"{new},{old}", Talker()

    async def served(keys: str, before: Running | None = None) -> Running:
        if before is not None:
            await asyncio.to_thread(before.stop, signal.SIGTERM)
        server = await asyncio.to_thread(start_server, ADMIN_KEY=root, SECRET_KEY=keys)
        curl.url = server.url
        return server

    async with talking(talker) as url:
        server = await served(old)
        auth = {"type": "bearer", "token": token}
        assert (
            await shown(curl, root, talker, await invoke(curl, root, url, auth=auth))
            == f"Bearer {token}"
        )
        _, made = await curl("/v1/sessions/s/tokens", root, {})
        server = await served(new, server)
        why = "cannot be read with the present SECRET_KEY"
        assert why in await shown(curl, root, talker), "the rig takes the key away"
        assert (await curl("/v1/runs", made["token"]))[0] == 401
        server = await served(both, server)
        assert await shown(curl, root, talker) == f"Bearer {token}"
        assert (await curl("/v1/runs", made["token"]))[0] == 200
        where = {"ORCHESTRATOR_URL": server.url, "ORCHESTRATOR_KEY": root}
        if not running:
            await asyncio.to_thread(server.stop)
            where = {**kept.settings, "SECRET_KEY": both}
        said = await asyncio.to_thread(command, tmp_path, "secrets", "rotate", **where)
        assert said.startswith("1 secret")
        await served(new, server)
        assert await shown(curl, root, talker) == f"Bearer {token}"


# ------------------------------------------------------------ what stands in front


@in_front
async def test_a_server_below_a_prefix(
    start_server: Callable[..., Running], curl: Curl, tmp_path: Path
) -> None:
    root, talker = token_hex(32), Talker()
    server = start_server(ADMIN_KEY=root, BASE_PATH="/orchestrator/")
    below = f"{server.url}/orchestrator"
    async with talking(talker) as url:
        for name, base in (("kept", below), ("taken", server.url)):
            curl.url = base
            run_id = await invoke(curl, root, url)
            reader = curl.follow(name, f"/v1/runs/{run_id}/events/stream", root)
            await reader.reads()
            talker.go.set()
            await reader.reads("run_done")
    assert talker.bases == {below.replace("127.0.0.1", "localhost")}
    assert (await curl("/orchestrators/v1/runs", root))[0] == 404
    where = {"ORCHESTRATOR_KEY": root, "ORCHESTRATOR_URL": below}
    assert (await asyncio.to_thread(command, tmp_path, "runs", "ls", **where)).count("run_") == 2


@in_front
async def test_pages_of_named_origins_may_call(
    start_server: Callable[..., Running], curl: Curl
) -> None:
    root, page, other = token_hex(32), "https://app.example", "https://evil.example"
    curl.url = start_server(ADMIN_KEY=root, CORS_ORIGINS=page).url
    allow = "access-control-allow-origin"
    ask = ("-X", "OPTIONS", "-H", "Access-Control-Request-Method: POST", "-H",
           "Access-Control-Request-Headers: authorization,content-type,last-event-id")  # fmt: skip
    code, said = await curl.head("/v1/runs", *ask, "-H", f"Origin: {page}")
    assert (code, said[allow]) == (200, page)
    for header in ("authorization", "content-type", "last-event-id"):
        assert header in said["access-control-allow-headers"].lower()
    assert allow not in (await curl.head("/v1/runs", *ask, "-H", f"Origin: {other}"))[1]
    code, said = await curl.head("/v1/runs", "-H", f"Origin: {page}")
    assert (code, said[allow]) == (401, page), "a page can read why"
    async with talking(Talker()) as url:
        run_id = await invoke(curl, root, url)
        stream = (f"/v1/runs/{run_id}/events/stream", "-H", f"Authorization: Bearer {root}")
        for origin, allowed in ((page, page), (other, None)):
            code, said = await curl.head(*stream, "-H", f"Origin: {origin}")
            assert (code, said["content-type"][:17]) == (200, "text/event-stream")
            assert (said.get(allow), said["x-run-id"]) == (allowed, run_id)
            assert "access-control-allow-credentials" not in said


@in_front
@pytest.mark.parametrize(
    ("trusted", "caller"),
    [("127.0.0.0/8,198.51.100.7", "203.0.113.9"), ("127.0.0.1", "198.51.100.7"),
     ("192.0.2.0/24", "127.0.0.1"), ("", "127.0.0.1")],
)  # fmt: skip
async def test_who_called_is_what_trusted_proxies_say(
    start_server: Callable[..., Running], curl: Curl, trusted: str, caller: str
) -> None:
    root = token_hex(32)
    server = start_server(ADMIN_KEY=root, TRUSTED_PROXIES=trusted)
    curl.url = server.url
    chain = "X-Forwarded-For: 10.1.1.1, 203.0.113.9, 198.51.100.7"
    assert (await curl("/v1/runs", token_hex(32), None, "-H", chain))[0] == 401
    entries: list[Any] = []
    async with asyncio.timeout(30):
        while not entries:
            _, page = await curl("/v1/audit?action=security.bad_credential", root)
            entries = page["entries"]
    assert entries[0]["target"] == f"{caller} at list_runs"
    [line] = [line for line in server.said().splitlines() if '"security"' in line]
    assert msgspec.json.decode(line)["target"] == f"{caller} at list_runs"


# ------------------------------------------------------------ people


async def test_people_of_an_identity_provider_need_no_keys(
    start_server: Callable[..., Running], curl: Curl
) -> None:
    async with FakeIdP(RealWorld()) as idp, talking(Talker()) as url:
        signing, other = idp.add_key(), idp.add_key(kid="key-2")
        idp.keys.pop()  # the second one is not published

        def token(role: str, **claims: Any) -> str:
            wanted = {"aud": "orchestrator", "orchestrator_role": role, "sub": "ann", **claims}
            return idp.token(signing, **wanted)

        where = {"OIDC_ISSUER": idp.issuer, "OIDC_AUDIENCE": "orchestrator"}
        curl.url = (await asyncio.to_thread(start_server, **where)).url
        admin, viewer = token("admin"), token("viewer", sub="bob")
        assert (await curl("/v1/runs"))[0] == 401
        assert (await curl("/v1/runs", viewer))[0] == 200
        wanted = {"name": "k", "role": "viewer"}
        assert (await curl("/v1/keys", viewer, wanted))[0] == 403
        code, made = await curl("/v1/keys", admin, wanted)
        assert (code, made["info"]["created_by"]) == (201, "person:ann")
        for bad in (
            token("admin", aud="another"), token("admin", exp=1), token("admin", iss="http://x"),
            idp.token(other, aud="orchestrator", orchestrator_role="admin"), token("king"),
        ):  # fmt: skip
            assert (await curl("/v1/runs", bad))[0] in {401, 403}
        run_id = await invoke(curl, admin, url)
        exp = int(time.time()) + 5 - LEEWAY_S
        ends = time.monotonic() + exp + LEEWAY_S - time.time()
        reader = curl.follow("bob", f"/v1/runs/{run_id}/events/stream", token("viewer", exp=exp))
        await reader.reads()
        assert await reader.cut(ends) <= SOON_S, "it ends with the proof of who reads it"
        entries = (await curl("/v1/audit?limit=1000", admin))[1]["entries"]
    acts = [(one["actor"], one["action"]) for one in entries if one["actor"] != "nobody"]
    assert acts == [("person:ann", "key.create"), ("person:ann", "agent.register")]
