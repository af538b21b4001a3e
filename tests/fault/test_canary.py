"""Planted secrets: none is found in a file, a log line, an answer, a bundle or a crash."""

import asyncio
import os
import pty
import signal
import subprocess
import threading
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex, token_urlsafe
from urllib.parse import quote

import msgspec
import pytest

from orchestrator.testing.fake_agent import FakeAgent, Peer, head

from ..processes import Running, free_port, until
from ..rigs import Tally
from . import canaries
from .canaries import PROGRAM, alter, bearer, scene, secret
from .sieve import Sieve, Voice


async def test_no_secret_is_anywhere(tmp_path: Path, tally: Tally) -> None:
    tally.expect("a run done", "a run failed", "a request that crashed", "a run that crashed",
                 "a token of an attempt", "killed in a run")  # fmt: skip
    async with scene(tmp_path) as it:
        good = canaries.make_keys(it)
        canaries.try_wrong_keys(it, good)
        canaries.put_in_wrong_places(it)
        async with FakeAgent(canaries.no_tls) as other:
            await canaries.run_agents(it, tally, other.url.replace("http:", "https:"))
        await canaries.read_everything(it)
        await canaries.read_session(it, good["session"])
        run_id = (await it.invoke("native-here", "wait for ever"))["run_id"]
        await asyncio.to_thread(canaries.run_commands, it, run_id)
        await asyncio.to_thread(canaries.misuse_commands, it, good)
        it.sieve.files("beside the server", it.folder)
        assert it.server.process.poll() is None
        await asyncio.to_thread(it.restart, "after kill -9", signal.SIGKILL)
        tally.fire("killed in a run")
        newest = it.sieve.plant("the newest SECRET_KEY", token_hex(32))
        keys = f"{newest},{it.env['SECRET_KEY']}"
        await asyncio.to_thread(it.restart, "at rest", signal.SIGTERM, SECRET_KEY=keys)
        await asyncio.to_thread(it.command, "secrets", "rotate", ORCHESTRATOR_KEY=it.admin)
        await asyncio.to_thread(it.restart, "with new keys", signal.SIGTERM, SECRET_KEY=newest)
        await canaries.read_everything(it)
        await canaries.crash(it, tally, good)
        it.server.stop()
        for words in (("keys", "ls"), ("audit", "ls"), ("audit", "verify")):
            assert it.command(*words) != b"", words
        it.sieve.files("at the end", it.folder)
        canaries.sift_agents(it, tally)
    tally.round(len(it.sieve.planted))
    assert it.sieve.found() == []


async def test_an_agent_that_repeats_what_it_was_shown_is_not_quoted(tmp_path: Path) -> None:
    async def repeat(peer: Peer) -> None:
        shown = (await peer.request()).headers
        said = f"{shown['authorization']} and {shown['x-run-token']} open nothing here"
        await peer.send(head(401), said.encode())

    async with scene(tmp_path) as it, FakeAgent(repeat) as agent:
        token = it.sieve.plant("the agent's token", secret("agent"))
        body = {"agent_id": "a", "name": "A", "endpoint": agent.url,
                "auth": {"type": "bearer", "token": token}}  # fmt: skip
        it.voice.ask("POST", "/v1/agents/register", body, bearer(it.admin))
        run = await it.invoke("a", "hello", wait=True)
        assert "open nothing here" in run["error"]["message"]
        it.sieve.key("an attempt's token", agent.requests[-1].headers["x-run-token"])
        it.server.stop()
        it.sieve.files("at the end", it.folder)
    assert it.sieve.found() == []


@contextmanager
def on_a_terminal(folder: Path, env: Mapping[str, str]) -> Iterator[tuple[Running, bytearray]]:
    """Start a server that writes to a terminal; hand out what is shown there."""
    leader, follower = pty.openpty()
    around = {"PATH": os.defpath, "HOME": str(folder), "TERM": "xterm", "COLUMNS": "200", **env}
    process = subprocess.Popen(
        PROGRAM, cwd=folder, env=around, stdin=follower, stdout=follower, stderr=follower
    )
    os.close(follower)
    shown = bytearray()

    def read() -> None:
        with suppress(OSError):  # Linux says EIO when the other side is gone
            while data := os.read(leader, 65_536):
                shown.extend(data)

    reader = threading.Thread(target=read)
    reader.start()
    running = Running(f"http://127.0.0.1:{env['HTTP_PORT']}", process, folder / "nothing")
    try:
        yield running, shown
    finally:
        running.kill()
        reader.join()
        os.close(leader)


def test_a_crash_on_a_terminal_shows_no_secret(tmp_path: Path) -> None:
    sieve = Sieve()
    admin = sieve.plant("ADMIN_KEY", secret("admin"))
    env = {"HTTP_PORT": str(free_port()), "INGRESS_URL": "off", "LOG_LEVEL": "debug",
           "ADMIN_KEY": admin, "SECRET_KEY": sieve.plant("SECRET_KEY", token_hex(32))}  # fmt: skip
    with on_a_terminal(tmp_path, env) as (server, shown):
        until(lambda: b"listening" in shown, "the server is up", 30)
        voice = Voice(server.url, sieve)
        body = {"agent_id": "a", "name": "A", "endpoint": "http://127.0.0.1:9"}
        assert voice.ask("POST", "/v1/agents/register", body, bearer(admin)).status == 200
        alter(tmp_path, "UPDATE agents SET retry = '{'")
        assert voice.ask("GET", "/v1/agents/a", None, bearer(admin)).status == 500
        until(lambda: b"request_failed" in shown, "the crash is told")
        server.stop()
    assert b"Traceback" in shown
    sieve.terminal("the terminal", bytes(shown))
    assert sieve.found() == []


def test_a_refused_start_says_no_secret(tmp_path: Path) -> None:
    sieve = Sieve()
    short, told = sieve.plant("a short key", token_urlsafe(18)), tmp_path / "told"
    told.write_text(short)
    for env in (
        {"ADMIN_KEY": short}, {"ADMIN_KEY": f"{short} {short}"}, {"ADMIN_KEY": f"ü{short * 2}"},
        {"ADMIN_KEY_FILE": str(told)}, {"SECRET_KEY": short}, {"SECRET_KEY_FILE": str(told)},
        {"DATABASE_URL": f"postgres://me:{short}@db/x"}, {"INGRESS_URL": f"http://me:{short}@[/"},
        {"OIDC_ISSUER": f"https://me:{short}@idp:x"}, {"LLM_API_KEY": short},
    ):  # fmt: skip
        around = {"PATH": os.defpath, "HOME": str(tmp_path), "HTTP_PORT": "0", **env}
        done = subprocess.run(
            PROGRAM, cwd=tmp_path, env=around, capture_output=True, timeout=60, check=False
        )
        assert done.returncode == 2, done.stderr
        sieve.look(f"a start refused for {', '.join(env)}", done.stdout + done.stderr)
    assert sieve.found() == []


# ------------------------------------------------------------ that it would be found


@pytest.mark.parametrize("when", ["beside the server", "at the end"])
async def test_a_secret_that_is_stored_is_found(tmp_path: Path, when: str) -> None:
    async with scene(tmp_path) as it:
        said = it.sieve.plant("a secret that somebody tells", secret("said"))
        message = {"role": "user", "content": f"my key is {said}"}
        where = "/v1/sessions/s/messages"
        assert it.voice.ask("POST", where, message, bearer(it.admin)).status == 200
        it.voice.ask("GET", where, None, bearer(it.admin))
        if when == "at the end":
            it.server.stop()
        it.sieve.files(when, it.folder)
    places = {found.partition(": in ")[2] for found in it.sieve.found()}
    stored = "orchestrator.db-wal" if when == "beside the server" else "orchestrator.db"
    assert any(place.startswith(f"{stored} {when}, as") for place in places), places
    assert any(place.startswith("the answer to GET") for place in places), places


def test_a_secret_is_found_in_every_form() -> None:
    text = secret("hidden")
    raw = text.encode()
    around = [b"x" * n + raw + b"y" for n in range(4)]
    written = {
        "plain": [raw, f"({text[:30]}…)".encode(), text.upper().encode()],
        "hex": [raw.hex().encode(), raw.hex().upper().encode()],
        "base64": [*map(b64encode, around), *map(urlsafe_b64encode, around)],
        "URL": [quote(text, safe="").encode()],
        "JSON": [msgspec.json.encode({"key": text})],
    }
    for form, datas in written.items():
        for data in datas:
            sieve = Sieve()
            sieve.plant("it", text)
            sieve.look("there", data)
            assert len(sieve.found()) == 1, (form, data)
            assert form in sieve.found()[0]
    sieve = Sieve()
    sieve.plant("it", text)
    sieve.terminal("there", f"│ {text[:9]} │\r\n│\x1b[31m{text[9:]}".encode())
    sieve.look("elsewhere", b"nothing of it")
    assert len(sieve.found()) == 1
