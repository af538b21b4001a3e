"""Who calls a server and whom it calls: curl, one process a call, and an agent that waits."""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from orchestrator.testing.fake_agent import FakeAgent, Peer, event, head

from ..processes import Running, spawn, until

WORD = "a word"
ENDED = {"DONE", "FAILED", "CANCELLED"}
PATIENCE_S = 20.0


class Curl:
    """Calls the server at `url`; streams that it follows end with the stack."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.stack = stack
        self.url = ""

    async def __call__(
        self, path: str, key: str = "", body: Any = None, *more: str
    ) -> tuple[int, Any]:
        """Return status and JSON of a call; with a body it is a POST."""
        words = [*_shown(key), *_posted(body), *more, "-w", "\n%{http_code}", self.url + path]
        said, _, code = (await _curl(*words)).rpartition("\n")
        return int(code), msgspec.json.decode(said) if said else None

    async def head(self, path: str, *more: str) -> tuple[int, dict[str, str]]:
        """Return status and headers of a call, by their names in lower case; a stream is left."""
        said = await _curl("-o", "/dev/null", "-D", "-", "-m", "2", *more, self.url + path)
        first, *lines = said.split("\r\n")
        fields = (line.partition(": ") for line in lines)
        return int(first.split()[1]), {name.lower(): value for name, _, value in fields}

    def follow(self, name: str, path: str, key: str = "") -> "Reader":
        """Follow a stream until it ends."""
        log = self.folder / f"{name}.log"
        words = ["curl", "-sN", *_shown(key), self.url + path]
        reader = Reader("", spawn(words, self.folder, log, {}), log)
        self.stack.callback(reader.kill)
        return reader


async def _curl(*words: str) -> str:
    done = await asyncio.to_thread(
        subprocess.run, ["curl", "-s", *words], capture_output=True, timeout=30, check=False
    )
    assert done.returncode in {0, 28}, done  # 28: the time for a stream is over
    return done.stdout.decode()


def _shown(key: str) -> list[str]:
    return ["-H", f"Authorization: Bearer {key}"] if key else []


def _posted(body: Any) -> list[str]:
    if body is None:
        return []
    return ["-H", "Content-Type: application/json", "-d", msgspec.json.encode(body).decode()]


class Reader(Running):
    """A stream that is followed."""

    async def reads(self, text: str = WORD) -> None:
        """Return once it has been sent a text."""
        await asyncio.to_thread(until, lambda: text in self.said(), f"the stream says {text}")

    async def cut(self, since: float) -> float:
        """Wait until the stream has ended; return how long after `since`."""
        gone = self.process.poll
        await asyncio.to_thread(until, lambda: gone() is not None, "the stream ends", PATIENCE_S)
        return time.monotonic() - since


class Talker:
    """What an agent does: it says a word and waits; then it breaks off, or later is done."""

    def __init__(self, breaks: int = 0) -> None:
        self._breaks = breaks
        self.go = asyncio.Event()
        self.tokens: list[str] = []
        self.credentials: list[str] = []
        self.bases: set[str] = set()

    async def __call__(self, peer: Peer) -> None:
        """Answer one invocation."""
        shown = (await peer.request()).headers
        self.tokens.append(shown["x-run-token"])
        self.credentials.append(shown.get("authorization", ""))
        self.bases.add(shown["x-platform-base-url"])
        await peer.send(head(), event("delta", text=WORD))
        await self.go.wait()
        self.go.clear()
        if len(self.tokens) > self._breaks:
            await peer.send(event("done"))

    async def called(self, times: int) -> str:
        """Return the token of an attempt once it has begun."""
        await asyncio.to_thread(until, lambda: len(self.tokens) >= times, "the agent is called")
        return self.tokens[times - 1]


@asynccontextmanager
async def talking(talker: Talker) -> AsyncIterator[str]:
    """Serve an agent and hand out its address; at the end it stops waiting."""
    async with FakeAgent(talker) as agent:
        try:
            yield agent.url
        finally:
            talker.go.set()


async def invoke(curl: Curl, key: str, url: str, **more: Any) -> str:
    """Register the agent and start a run of it; return the run's id."""
    fields = {"agent_id": "a", "name": "A", "endpoint": url, **more}
    code, said = await curl("/v1/agents/register", key, fields)
    assert code == 200, said
    return await again(curl, key)


async def again(curl: Curl, key: str) -> str:
    """Start a run in the session s and return its id."""
    body = {"agent_id": "a", "session_id": "s", "input_message": {"content": "hello"}}
    code, run = await curl("/v1/runs", key, body)
    assert code == 201, run
    return str(run["run_id"])


async def ended(curl: Curl, key: str, run_id: str) -> dict[str, Any]:
    """Return a run at its end."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            code, run = await curl(f"/v1/runs/{run_id}", key)
            assert code == 200, run
            if run["status"] in ENDED:
                found: dict[str, Any] = run
                return found


async def shown(curl: Curl, key: str, talker: Talker, run_id: str = "") -> str:
    """Return what the agent of a run, of a new one unasked, was shown, or why it was not called."""
    run_id = run_id or await again(curl, key)
    talker.go.set()
    run = await ended(curl, key, run_id)
    talker.go.clear()
    return str(run["error"]["message"] if "error" in run else talker.credentials[-1])


async def refused(curl: Curl, path: str, key: str, since: float) -> tuple[int, str, float]:
    """Call until the key opens nothing; return status, code and how long it did after `since`."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            code, said = await curl(path, key)
            if code != 200:
                return code, said["code"], time.monotonic() - since


def command(folder: Path, *words: str, **env: str) -> str:
    """Run a command in a server's folder and return what it writes."""
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", *words], cwd=folder,
        env={"PATH": "", "HOME": str(folder), **env}, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
