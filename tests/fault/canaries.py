"""What is done with planted secrets: shown, refused, misplaced, sent to agents, crashed over."""

import asyncio
import os
import signal
import subprocess
import sys
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex, token_urlsafe
from typing import Any
from urllib.parse import quote

import apsw

from orchestrator.testing.fake_agent import FakeAgent, Peer, event, head

from ..processes import Running, free_port, start_server
from ..rigs import Tally
from .sieve import Sieve, Voice

PROGRAM = (sys.executable, "-m", "orchestrator")
PROTOCOLS = ("native", "openai", "json")
ANSWERS: dict[str, tuple[bytes, ...]] = {
    "500": (head(500), b"out of order"),
    "401": (head(401), b"who are you?"),
    "redirect": (head(302, headers=[("Location", "http://127.0.0.1:9/elsewhere")]),),
    "another language": (b"SSH-2.0-OpenSSH_9.9\r\n",),
    "nothing": (),
    "no words": (head(content_type="text/html"), b"<p>hello"),
    "half a word": (head(), b'event: delta\ndata: {"text": \n\n'),
    "an error": (head(), event("error", code="broken", message="it is broken")),
    "well": (head(), event("delta", text="hi"), event("done", final_message="hi")),
}
PLACES = (
    "/nowhere/SECRET", "/SECRET", "/v1/agents/a/SECRET", "/v1/runs?status=SECRET",
    "/v1/runs?limit=SECRET", "/v1/runs?cursor=SECRET", "/v1/runs?created_before=SECRET",
    "/v1/runs?api_key=SECRET", "/v1/runs?token=SECRET", "/v1/audit?action=SECRET",
    "/v1/runs/x/events?types=SECRET", "/v1/runs/x/events?after_seq=SECRET",
    "/v1/agents?status=SECRET", "/health?SECRET", "/openapi.json?SECRET",
)  # fmt: skip
NAMES = (
    "/v1/runs/SECRET", "/v1/runs/SECRET/events", "/v1/runs/SECRET/events/stream",
    "/v1/runs/SECRET/tree", "/v1/agents/SECRET", "/v1/sessions/SECRET",
    "/v1/sessions/SECRET/messages",
)  # fmt: skip
"""Where the contract's sentence names what was asked for, to whoever asked."""


async def script(peer: Peer) -> None:
    """Answer as the message asks; for a message that is not in the table, never."""
    request = await peer.request()
    if not request.body:
        return  # whether it lives; that is answered by whoever asks
    asked = request.json()
    message = asked.get("input_message") or asked["messages"][-1]
    if message["content"] not in ANSWERS:
        await peer.send(head(), event("delta", text="wait"))
        await peer.hung_up()
        return
    await peer.send(*ANSWERS[message["content"]])


def secret(word: str) -> str:
    """Make a secret that looks different in each form."""
    return f"{word}-{token_urlsafe(9)}/+%&={token_hex(12)}"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@dataclass
class Scene:
    """A server with keys, agents with credentials, and a sieve that sees all that is said."""

    folder: Path
    sieve: Sieve
    voice: Voice
    agent: FakeAgent
    env: dict[str, str]
    admin: str
    server: Running

    def restart(self, when: str, sign: signal.Signals, **env: str) -> None:
        """End the server, look at what it left, and start it again."""
        self.server.stop(sign)
        self.sieve.files(when, self.folder)
        self.env |= env
        self.server = start_server(self.folder, **self.env)

    def command(self, *words: str, **env: str) -> bytes:
        """Run a command in the server's folder, and look at what it writes."""
        around = {"PATH": os.defpath, "HOME": str(self.folder), **self.env, **env}
        done = subprocess.run(
            [*PROGRAM, *words], cwd=self.folder, env=around, capture_output=True, timeout=60,
            check=False,
        )  # fmt: skip
        self.sieve.look(f"what {words} writes", done.stdout + done.stderr)
        return done.stdout

    async def invoke(self, agent_id: str, content: str, **more: Any) -> dict[str, Any]:
        message = {"role": "user", "content": content}
        body = {"agent_id": agent_id, "input_message": message, **more}
        answer = await asyncio.to_thread(
            self.voice.ask, "POST", "/v1/runs", body, bearer(self.admin)
        )
        assert answer.status in {200, 201, 202}, answer.body
        run: dict[str, Any] = answer.json()
        return run


@asynccontextmanager
async def scene(folder: Path) -> AsyncIterator[Scene]:
    """Start a server that logs all it can, told its secrets in a file and in the environment."""
    sieve, port = Sieve(), free_port()
    admin = sieve.plant("ADMIN_KEY", secret("admin"))
    keys = [sieve.plant(f"SECRET_KEY {n}", token_hex(32)) for n in range(2)]
    elsewhere = folder / "told"
    elsewhere.mkdir()
    (elsewhere / "admin").write_text(admin + "\n")
    home = folder / "home"
    home.mkdir()
    env = {
        "HTTP_PORT": str(port), "INGRESS_URL": "off", "LOG_LEVEL": "debug",
        "ADMIN_KEY_FILE": str(elsewhere / "admin"), "SECRET_KEY": ",".join(keys),
    }  # fmt: skip
    async with FakeAgent(script) as agent:
        server = start_server(home, **env)
        found = Scene(home, sieve, Voice(server.url, sieve), agent, env, admin, server)
        try:
            yield found
        finally:
            found.server.kill()


def make_keys(scene: Scene) -> dict[str, str]:
    """Make keys and tokens in every way there is, end some, and use them all."""
    give, root = scene.voice.given, bearer(scene.admin)
    made: dict[str, str] = {}
    for role in ("admin", "ingress", "agent", "viewer"):
        wanted = {"name": role, "role": role, "limits": {"*": "5/m"} if role == "viewer" else {}}
        first = give(f"{role}'s key", "/v1/keys", wanted, root)
        where = f"/v1/keys/{first['info']['key_id']}"
        made[f"old {role}"] = first["key"]
        made[role] = give(f"{role}'s next key", f"{where}:rotate", {}, root)["key"]
        if role == "agent":
            scene.voice.ask("POST", f"{where}:revoke", None, root)
    by = bearer(made["ingress"])
    scopes = {"scopes": ["read", "invoke"], "user_id": "ann"}
    made["session"] = give("the session's token", "/v1/sessions/s/tokens", scopes, by)["token"]
    for key in made.values():
        for _ in range(7):  # beyond the viewer's limit
            scene.voice.ask("GET", "/v1/runs", None, bearer(key))
        scene.voice.ask("GET", "/v1/keys", None, {"X-API-Key": key})
    return made


def try_wrong_keys(scene: Scene, good: Mapping[str, str]) -> None:
    """Show what opens nothing, everywhere that something may be shown."""
    key_id = good["admin"].split("_")[2]
    plant = scene.sieve.key
    wrong = {
        "a key of nobody": f"ok_live_{key_id[::-1]}_{token_hex(32)}",
        "a secret of another key": f"ok_live_{key_id}_{token_hex(32)}",
        "a key cut short": f"ok_live_{key_id}_{token_hex(31)}",
        "a password": f"x_{token_hex(20)}",
        "an altered token": good["session"][:-30] + token_hex(15),
        "a token of nobody": f"ort_{token_urlsafe(90)}.{token_urlsafe(32)}",
    }
    for name, text in wrong.items():
        plant(name, text)
        basic = b64encode(f"user:{text}".encode()).decode()
        for headers in (
            bearer(text), {"X-API-Key": text}, {"X-Run-Token": text},
            {"Authorization": f"Basic {basic}"}, {"Authorization": text},
            bearer(text) | {"X-API-Key": good["admin"]},
            {"Cookie": f"session={text}"},
        ):  # fmt: skip
            assert scene.voice.ask("GET", "/v1/runs", None, headers).status in {400, 401}
        where = f"/v1/sessions/s/events?token={quote(text)}"
        assert scene.voice.ask("GET", where).status == 401


def misplaced(url: str, text: str) -> dict[str, tuple[str, Any]]:
    """Return bodies that hold a secret where none belongs, by what is wrong with them.

    The name of an entry may be told back to who sent it; a value never is.
    """
    register, keys = "/v1/agents/register", "/v1/keys"
    agent, key = {"agent_id": "a", "name": "A", "endpoint": url}, {"name": "k", "role": "viewer"}
    written = quote(text, safe="")
    return {
        "an unknown field": (register, agent | {"password": text}),
        "the name of a field": (register, agent | {text: 1}),
        "auth.type": (register, agent | {"auth": {"type": text, "token": "t"}}),
        "a token in a list": (register, agent | {"auth": {"token": [text]}}),
        "auth itself": (register, agent | {"auth": text}),
        "a token with a space": (register, agent | {"auth": {"token": f"{text} x"}}),
        "a timeout": (register, agent | {"timeouts": {"idle_ms": text}}),
        "on_lost": (register, agent | {"on_lost": text}),
        "protocol": (register, agent | {"protocol": text}),
        "scopes": (register, agent | {"scopes": [text]}),
        "a URL's user": (register, agent | {"endpoint": f"http://me:{written}@127.0.0.1/"}),
        "a URL's query": (register, agent | {"endpoint": f"http://127.0.0.1/?key={written}"}),
        "a role": (keys, key | {"role": text}),
        "an environment": (keys, key | {"environment": text}),
        "a limit": (keys, key | {"limits": {"*": text}}),
        "scopes of a token": ("/v1/sessions/s/tokens", {"scopes": [text]}),
        "on_busy": ("/v1/runs", {"agent_id": "a", "on_busy": text,
                                 "input_message": {"content": "well"}}),
        "the name of a label": ("/v1/runs", {"agent_id": "a", "labels": {text: 1}}),
        "a broken body": (register, f'{{"auth": {{"token": "{text}"'.encode()),
        "a form": (register, f"token={text}".encode()),
        "a body that is no text": (register, b"\xff" + text.encode()),
        "a body of one word": (register, f'"{text}"'.encode()),
    }  # fmt: skip


def put_in_wrong_places(scene: Scene) -> None:
    """Put secrets where none belong: other fields, broken bodies, paths, queries, headers."""
    root, sieve, voice = bearer(scene.admin), scene.sieve, scene.voice
    for what in misplaced("", ""):
        text = sieve.plant(f"a secret in {what}", secret("misplaced"))
        path, body = misplaced(scene.agent.url, text)[what]
        voice.ask("POST", path, body, root)
    for path in PLACES:
        text = quote(sieve.plant(f"a secret in {path}", secret("misplaced")), safe="")
        voice.ask("GET", path.replace("SECRET", text), None, root)
    for path in NAMES:
        text = quote(sieve.plant(f"a secret in {path}", token_hex(32)), safe="")
        assert voice.ask("GET", path.replace("SECRET", text), None, root, text).status in {200, 404}
    for header in ("Last-Event-ID", "traceparent", "Idempotency-Key", "X-Secret", "Host"):
        text = sieve.plant(f"a secret in the header {header}", secret("misplaced"))
        voice.ask("GET", "/v1/runs/x/events/stream", None, root | {header: text})


async def no_tls(peer: Peer) -> None:
    """Answer at once, whatever is asked."""
    await peer.send(head(400))


async def run_agents(scene: Scene, tally: Tally, tls: str) -> None:
    """Call agents with their credentials: answered well, badly, not at all."""
    root = bearer(scene.admin)
    places = {"here": scene.agent.url, "away": f"http://127.0.0.1:{free_port()}", "tls": tls}
    for protocol in PROTOCOLS:
        for word, where in places.items():
            token = scene.sieve.plant(f"the {protocol} agent's token", secret("agent"))
            body = {
                "agent_id": f"{protocol}-{word}", "name": "A", "endpoint": where,
                "protocol": protocol, "auth": {"type": "bearer", "token": token},
            }  # fmt: skip
            answer = await asyncio.to_thread(
                scene.voice.ask, "POST", "/v1/agents/register", body, root
            )
            assert answer.status == 200, answer.body
        for content in ANSWERS:
            run = await scene.invoke(f"{protocol}-here", content, wait=True)
            tally.fire(f"a run {run['status'].lower()}")
        for word in ("away", "tls"):
            run = await scene.invoke(f"{protocol}-{word}", "well", wait=True)
            assert run["error"]["code"] == "agent_unavailable", run
            tally.fire("a run failed")


def sift_agents(scene: Scene, tally: Tally) -> None:
    """Look for the tokens that agents were shown, too: there is one for each attempt."""
    for asked in filter(lambda one: one.body, scene.agent.requests):
        assert asked.headers["authorization"].startswith("Bearer agent-")
        scene.sieve.key("an attempt's token", asked.headers["x-run-token"])
        tally.fire("a token of an attempt")


async def read_everything(scene: Scene) -> None:
    """Ask for all that the server tells."""
    root, voice = bearer(scene.admin), scene.voice
    runs = voice.ask("GET", "/v1/runs?limit=1000", None, root).json()["runs"]
    for run in runs:
        where = f"/v1/runs/{run['run_id']}"
        for path in (where, f"{where}/events?limit=1000", f"{where}/tree"):
            assert voice.ask("GET", path, None, root).status == 200
        assert b"run_started" in voice.read(f"{where}/events/stream", root)
    for path in ("/health", "/health/live", "/health/ready", "/metrics", "/openapi.json", "/docs",
                 "/v1/agents", "/v1/agents/native-here", "/v1/keys", "/v1/audit?limit=1000",
                 "/v1/audit/verify", "/v1/sessions", "/v1/sessions/s/messages"):  # fmt: skip
        assert voice.ask("GET", path, None, root).status == 200, path


async def read_session(scene: Scene, token: str) -> None:
    """Read a run's stream with the token in the address, where it belongs."""
    own = (await scene.invoke("native-here", "well", session_id="s", wait=True))["run_id"]
    path = f"/v1/runs/{own}/events/stream?token={token}"
    assert b"run_done" in await asyncio.to_thread(scene.voice.read, path)


def run_commands(scene: Scene, run_id: str) -> None:
    """Run every command that tells something, against the server or without one."""
    shown = {"ORCHESTRATOR_KEY": scene.admin}
    for words in (
        ["agents", "ls"], ["agents", "show", "native-here"], ["keys", "ls"], ["audit", "ls"],
        ["audit", "verify"], ["runs", "ls"], ["runs", "show", run_id], ["secrets", "rotate"],
        ["replay", run_id, "--json"], ["replay", run_id], ["doctor", "--bundle", "report.tgz"],
    ):  # fmt: skip
        assert scene.command(*words, **shown) != b"", words
    (scene.folder / "backup.db").unlink(missing_ok=True)
    scene.command("backup", "backup.db", **shown)
    assert (scene.folder / "backup.db").exists()


def misuse_commands(scene: Scene, good: Mapping[str, str]) -> None:
    """Give commands a secret where its id would do, or one that opens nothing."""
    wrong = scene.sieve.key("a wrong ORCHESTRATOR_KEY", f"ok_live_nobody_{token_hex(32)}")
    scene.command("keys", "revoke", good["old viewer"], ORCHESTRATOR_KEY=scene.admin)
    scene.command("keys", "rotate", wrong, ORCHESTRATOR_KEY=scene.admin)
    scene.command("runs", "ls", ORCHESTRATOR_KEY=wrong)
    scene.command("agents", "ls", ORCHESTRATOR_KEY=wrong.replace("ok", "ö"))


def alter(folder: Path, text: str) -> None:
    """Change a database under its server."""
    db = apsw.Connection(f"{folder}/orchestrator.db")
    db.set_busy_timeout(5000)
    db.execute(text)
    db.close()


async def crash(scene: Scene, tally: Tally, good: Mapping[str, str]) -> None:
    """Let the server fail by itself: rows that are no records any more."""
    alter(scene.folder, "UPDATE agents SET retry = '{' WHERE agent_id = 'json-here'")
    alter(scene.folder, "UPDATE messages SET content = '{' WHERE session_id = 's'")
    for key in (scene.admin, *good.values()):
        answer = scene.voice.ask("GET", "/v1/agents/json-here", None, bearer(key))
        tally.fire("a request that crashed", answer.status == 500)
    run = await scene.invoke("native-here", "well", session_id="s", wait=True)
    assert run["status"] == "FAILED"
    assert '"run_crashed"' in scene.server.said()
    tally.fire("a run that crashed")
