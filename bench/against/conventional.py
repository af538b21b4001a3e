"""The same path as a competent team would write it today: FastAPI, httpx, pydantic, aiosqlite.

One process on uvloop and httptools, SQLite in WAL mode with synchronous=NORMAL, one connection pool
to the agents, a validated model per event, an insert and a commit per event, a queue per reader.
"""

import asyncio
import json
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import uuid4

import aiosqlite
import httpx
import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

TERMINAL: Final = {"run_done", "run_failed"}
SCHEMA: Final = """
CREATE TABLE agents (agent_id TEXT PRIMARY KEY, endpoint TEXT NOT NULL);
CREATE TABLE runs (run_id TEXT PRIMARY KEY, session_id TEXT NOT NULL, agent_id TEXT NOT NULL,
                   status TEXT NOT NULL);
CREATE TABLE events (run_id TEXT NOT NULL, seq INTEGER NOT NULL, type TEXT NOT NULL,
                     body TEXT NOT NULL, PRIMARY KEY (run_id, seq));
"""


class Message(BaseModel):
    role: str
    content: str


class Invocation(BaseModel):
    session_id: str
    agent_id: str
    input_message: Message


class Accepted(BaseModel):
    run_id: str
    session_id: str
    agent_id: str


class Registration(BaseModel):
    agent_id: str
    name: str
    endpoint: str


class Event(BaseModel):
    event_id: str = Field(default_factory=lambda: f"evt_{uuid4().hex}")
    run_id: str
    seq: int
    ts: int = Field(default_factory=lambda: int(time.time() * 1000))
    type: str
    payload: dict[str, Any]

    def frame(self) -> str:
        """Return the event as a server-sent event."""
        return f"id: {self.seq}\nevent: {self.type}\ndata: {self.model_dump_json()}\n\n"


class Runs:
    """Runs agents, keeps their events, hands them to readers."""

    def __init__(
        self, db: aiosqlite.Connection, http: httpx.AsyncClient, tasks: asyncio.TaskGroup
    ) -> None:
        self.db = db
        self._http = http
        self._tasks = tasks
        self._seqs: dict[str, int] = defaultdict(int)
        self._readers: dict[str, set[asyncio.Queue[Event]]] = defaultdict(set)

    async def start(self, body: Invocation) -> Accepted:
        """Accept a run and let it go on behind the answer."""
        query = "SELECT endpoint FROM agents WHERE agent_id = ?"
        async with self.db.execute(query, (body.agent_id,)) as cursor:
            row = await cursor.fetchone()
        if row is None:
            raise HTTPException(404, f"agent {body.agent_id} not found")
        run_id = f"run_{uuid4().hex}"
        await self.db.execute(
            "INSERT INTO runs VALUES (?, ?, ?, 'RUNNING')", (run_id, body.session_id, body.agent_id)
        )
        await self._emit(run_id, "run_started", body.model_dump(exclude={"input_message"}))
        await self._emit(run_id, "user_input", {"content": body.input_message.content})
        self._tasks.create_task(self._drive(run_id, body, row[0]))
        return Accepted(run_id=run_id, session_id=body.session_id, agent_id=body.agent_id)

    async def _drive(self, run_id: str, body: Invocation, endpoint: str) -> None:
        try:
            await self._stream(run_id, body, endpoint)
        except (httpx.HTTPError, ValueError) as error:
            await self._end(run_id, "run_failed", {"message": str(error)})

    async def _stream(self, run_id: str, body: Invocation, endpoint: str) -> None:
        call = {**body.model_dump(), "run_id": run_id, "messages": [], "context": {}}
        await self._emit(run_id, "agent_invoke_started", {"endpoint": endpoint})
        async with self._http.stream("POST", f"{endpoint}/invoke", json=call) as answer:
            answer.raise_for_status()
            name = ""
            async for line in answer.aiter_lines():
                if line.startswith("event: "):
                    name = line[7:]
                elif line.startswith("data: ") and name == "delta":
                    await self._emit(run_id, "agent_stream_delta", json.loads(line[6:]))
                elif line.startswith("data: ") and name == "done":
                    done = json.loads(line[6:])
                    await self._emit(run_id, "agent_invoke_done", done)
                    await self._end(run_id, "run_done", done)

    async def _end(self, run_id: str, kind: str, payload: dict[str, Any]) -> None:
        await self.db.execute("UPDATE runs SET status = ? WHERE run_id = ?", (kind, run_id))
        await self._emit(run_id, kind, payload)

    async def _emit(self, run_id: str, kind: str, payload: dict[str, Any]) -> None:
        self._seqs[run_id] += 1
        event = Event(run_id=run_id, seq=self._seqs[run_id], type=kind, payload=payload)
        await self.db.execute(
            "INSERT INTO events VALUES (?, ?, ?, ?)",
            (run_id, event.seq, kind, event.model_dump_json()),
        )
        await self.db.commit()
        for queue in self._readers[run_id]:
            queue.put_nowait(event)

    async def follow(self, run_id: str) -> AsyncIterator[str]:
        """Yield a run's frames from the first to the terminal one."""
        queue: asyncio.Queue[Event] = asyncio.Queue()
        self._readers[run_id].add(queue)
        try:
            seq = 0
            query = "SELECT body FROM events WHERE run_id = ? ORDER BY seq"
            async with self.db.execute(query, (run_id,)) as rows:
                async for (body,) in rows:
                    event = Event.model_validate_json(body)
                    seq = event.seq
                    yield event.frame()
                    if event.type in TERMINAL:
                        return
            while True:
                event = await queue.get()
                if event.seq > seq:
                    yield event.frame()
                    if event.type in TERMINAL:
                        return
        finally:
            self._readers[run_id].discard(queue)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the database and the client for as long as the server runs."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
    async with (
        aiosqlite.connect("conventional.db") as db,
        httpx.AsyncClient(timeout=None, limits=limits) as http,  # noqa: S113  # streams are long
        asyncio.TaskGroup() as tasks,
    ):
        await db.execute("PRAGMA journal_mode=WAL")
        await db.execute("PRAGMA synchronous=NORMAL")
        await db.executescript(SCHEMA)
        app.state.runs = Runs(db, http, tasks)
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/health")
async def health() -> dict[str, str]:
    return {"status": "healthy"}


@app.post("/v1/agents/register")
async def register(body: Registration) -> dict[str, bool]:
    db = app.state.runs.db
    await db.execute("REPLACE INTO agents VALUES (?, ?)", (body.agent_id, body.endpoint))
    await db.commit()
    return {"ok": True}


@app.post("/internal/invoke")
async def invoke(body: Invocation) -> Accepted:
    accepted: Accepted = await app.state.runs.start(body)
    return accepted


@app.get("/v1/runs/{run_id}/events/stream")
async def events(run_id: str) -> StreamingResponse:
    return StreamingResponse(app.state.runs.follow(run_id), media_type="text/event-stream")


if __name__ == "__main__":
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        log_level="warning",
        access_log=False,
        backlog=4096,
    )
