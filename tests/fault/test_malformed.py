"""Malformed requests by the hundred thousand: each gets one documented answer, and never a 500."""

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Final

import msgspec
from msgspec.structs import replace

from orchestrator.api import APISettings
from orchestrator.core.access import ROLES, SESSION_SCOPES, local
from orchestrator.core.errors import Conflict, OrchestratorError
from orchestrator.core.records import Run
from orchestrator.core.states import OPEN
from orchestrator.engine import TENANT, NewKey
from orchestrator.world import RealWorld

from ..rigs import Tally
from .mischief import TWISTS, Known, Mischief
from .openapi_check import JSON, STAY, Exchange, Sent, Stage, staged

FULL: Final = 1_000_000
QUICK: Final = 200_000
BLOCK: Final = 5_000
"""Requests that one server gets before the next one takes its place."""
WIDTH: Final = 16
"""Requests that are on their way at once."""
FURNISHED: Final = 500
"""Requests after which there is again what they may have removed."""
PLAIN: Final = APISettings(keep_alive_s=1.0, wait_s=0.02, body_idle_s=0.02)
PROXIED: Final = replace(
    PLAIN,
    base_path="/base",
    trusted_proxies=("127.0.0.0/8",),
    cors_origins=("https://pages.example",),
)
HOST: Final = (b"host", b"localhost")
STATUSES: Final = (200, 201, 202, 204, 400, 401, 403, 404, 405, 408, 409, 413, 429, 503)


@dataclass
class Block:
    """What became of the requests of one server; `wrong` has a request for each objection."""

    number: int
    count: int
    fired: Counter[str] = field(default_factory=Counter)
    wrong: dict[str, str] = field(default_factory=dict)


def play(number: int, count: int) -> Block:
    """Put `count` requests to a server of its own; the number decides which ones."""
    block = Block(number, count)
    memory = Path("/dev/shm")  # noqa: S108  # a folder of our own is made in it
    with TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        asyncio.run(_play(block, Path(folder)))
    return block


async def _play(block: Block, folder: Path) -> None:
    """Play a block; of four servers one has no keys, and one stands behind a proxy."""
    admin_key = None if block.number % 4 == 1 else RealWorld().noise(24).hex()
    settings = PROXIED if block.number % 4 == 3 else PLAIN
    async with staged(folder, admin_key, settings, max_open_runs=10) as stage:
        known = Known()
        holders = await _credentials(stage, admin_key) if admin_key else []
        known.strong += holders[:3]
        rnd, document = Random(block.number), stage.contract.document
        mischief = Mischief(rnd, document, known, settings.base_path)
        numbers = iter(range(block.count))
        async with asyncio.TaskGroup() as tasks:
            for _ in range(WIDTH):
                tasks.create_task(_caller(stage, mischief, block, numbers, holders))
        health = await Exchange(Sent("GET", b"/health", headers=[HOST])).through(stage.app)
        assert health.status == 200, health.body


async def _caller(
    stage: Stage, mischief: Mischief, block: Block, numbers: Iterator[int], holders: list[str]
) -> None:
    """Make one request after the other as long as there are numbers."""
    for number in numbers:
        if number % FURNISHED == 0:
            await _furnish(stage, mischief.known, number)
            mischief.known.shown.extend(holders)
        sent, twists = mischief.request()
        block.fired.update(twists)
        await _ask(stage, mischief.known, block, sent)


async def _credentials(stage: Stage, admin_key: str) -> list[str]:
    """Return a credential of every kind, those that may do everything first."""
    keys, tokens = stage.rig.engine.keys, stage.rig.engine.tokens
    wanted = [(TENANT, "admin", {}), ("other", "admin", {}), (TENANT, "admin", {"*": "9/m"})]
    wanted += [(tenant, role, {}) for tenant in (TENANT, "other") for role in ROLES]
    made = [
        await keys.create(NewKey(name="k", role=role, tenant=tenant, limits=limits), local(TENANT))
        for tenant, role, limits in wanted
    ]
    await keys.revoke(made[-1].key.key_id, local("other"))
    maker = replace(local(TENANT), key_id=made[0].key.key_id, maker=None)
    scopes = [[scope] for scope in SESSION_SCOPES] + [[*SESSION_SCOPES]]
    for_session = [(await tokens.for_session("s1", maker, scopes=some))[0] for some in scopes]
    shown = [*(one.text for one in made), *for_session]
    return [admin_key, *(secret.reveal() for secret in shown)]


async def _furnish(stage: Stage, known: Known, number: int) -> None:
    """See to it that there is room, an agent, and a run in progress whose token is known."""
    rig = stage.rig
    for run in await rig.store.find(Run, ("status", "in", sorted(OPEN))):
        with suppress(Conflict):  # it has just ended by itself
            await rig.engine.runs.cancel(run.run_id, "room for others", run.tenant)
    with suppress(OrchestratorError, TimeoutError):  # the others change the same agent meanwhile
        await rig.register()
        run = await rig.invoke(STAY, session_id=f"live-{number}")
        known.learn({"run_id": run.run_id, "session_id": "s1", "agent_id": "demo"})
        async with asyncio.timeout(0.2):
            while not (tokens := [c.run_token for c in rig.agent.calls if c.run_id == run.run_id]):
                await asyncio.sleep(0.002)
        known.shown += [token.reveal() for token in tokens if token]
    rig.agent.calls.clear()


async def _ask(stage: Stage, known: Known, block: Block, sent: Sent) -> None:
    answer = Exchange(sent)
    try:
        await answer.through(stage.app)
        wrong = [] if _preflight(sent) else stage.contract.objections(answer)
    except Exception as error:  # noqa: BLE001  # whatever it is, it is what we look for
        wrong = [f"raised {error!r}"]
    wrong += stage.heard
    stage.heard.clear()
    block.fired[f"answered {answer.status}"] += 1
    for objection in wrong:
        story = f"block {block.number}: {sent}\n    {answer.status} {answer.body[:500]!r}"
        block.wrong.setdefault(objection, story)
    if answer.status in {200, 201} and answer.headers.get("content-type") == JSON:
        known.learn(msgspec.json.decode(answer.body))


def _preflight(sent: Sent) -> bool:
    """Return whether a browser asks what a page may do: that is answered beside the API."""
    return sent.method == "OPTIONS" and any(
        name.startswith(b"access-control") for name, _ in sent.headers
    )


def test_no_request_is_answered_other_than_documented(
    tally: Tally, rounds_of: Callable[[int], int]
) -> None:
    count = min(FULL, rounds_of(20 * QUICK))  # a fifth of the rounds, not a twentieth
    blocks = [(n, min(BLOCK, count - at)) for n, at in enumerate(range(0, count, BLOCK))]
    tally.expect(*TWISTS, *(f"answered {status}" for status in STATUSES))
    wrong: dict[str, str] = {}
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as processes:
        for block in processes.map(play, *zip(*blocks, strict=True)):
            tally.round(block.count)
            for name, times in block.fired.items():
                tally.fire(name, times)
            wrong = block.wrong | wrong
    told = [f"{objection}\n    {story}" for objection, story in wrong.items()]
    assert not wrong, "\n".join([f"{len(wrong)} objections", *told[:20]])
