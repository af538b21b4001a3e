"""A FastAPI service that you have, and an agent mounted into it, which uses the same data.

Beside a running `./orchestrator`, in two terminals:

    $ ORCHESTRATOR_URL=http://localhost:8080 uvicorn examples.fastapi_service:app --port 8006
    $ ./orchestrator invoke storeroom "Are there pears?"
    There are 7 pears.

The service's own route goes on as before: `curl http://localhost:8006/stock/pears`.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from orchestrator_sdk import Agent, Context, mount, registered

STOCK = {"apples": 12, "pears": 7}


async def answer(ctx: Context) -> AsyncIterator[str]:
    asked = ctx.text.lower()
    found = [name for name in STOCK if name in asked]
    for name in found:
        yield f"There are {STOCK[name]} {name}."
    if not found:
        yield f"I know of {' and '.join(STOCK)}."


storeroom = Agent("storeroom", answer, capabilities=["stock"])


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with registered(storeroom, "http://localhost:8006/agents/storeroom"):
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/stock/{name}")
async def stock(name: str) -> dict[str, int]:
    return {name: STOCK.get(name, 0)}


mount(app, storeroom, path="/agents/storeroom")
