"""Every kind of caller, and two tenants that have one of everything for them to ask for."""

import asyncio
import dataclasses
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from msgspec.structs import replace

from orchestrator.api.routes import ROUTES
from orchestrator.api.shapes import CreateKeyBody
from orchestrator.api.streams import COMMENT
from orchestrator.api.table import Route
from orchestrator.core import credentials
from orchestrator.core.access import OPEN, ROLES, RUN_SCOPES, SESSION_SCOPES, local
from orchestrator.core.credentials import SessionClaims
from orchestrator.core.frames import Delta, Done, Frame
from orchestrator.core.ops import Op, Patch
from orchestrator.core.records import Agent, Invocation, Key, Run, Session
from orchestrator.core.secret import Secret
from orchestrator.engine import TENANT, NewKey, Registration
from orchestrator.engine.limits import AccessSettings
from orchestrator.ports import AgentCall
from orchestrator.testing.plain_box import PlainBox
from orchestrator.world import RealWorld

from ..engine.rig import until
from .conftest import Answer, Client, Database
from .conftest import serving as api_serving

TENANTS: Final = {TENANT: "quartz", "other": "basalt"}
"""Two tenants, and the word that stands in every name and text of theirs."""
REFERENCES: Final = ("session_id", "agent_id", "run_id", "parent_run_id", "key_id")
"""What a path or a body calls the things of a tenant."""
VALUES: Final = {
    "input_message": {"role": "user", "content": "hi"}, "content": "hi", "name": "n",
    "endpoint": "http://agent",
}  # fmt: skip
NAMED: Final = {"name": "client.mjs"}
"""What else a path names, that is nobody's."""
"""What else a body must have; a field that is not here is the text "x"."""


async def answer_or_stay(call: AgentCall) -> AsyncIterator[Sequence[Frame]]:
    """Answer, unless asked to stay: then the run goes on until somebody ends it."""
    if call.content == "stay":
        await asyncio.Event().wait()
    yield [Delta(str(call.content)), Done()]


@dataclass(frozen=True)
class Place:
    """One of everything that a tenant has; in the session one run ended, and one goes on."""

    tenant: str
    session_id: str
    agent_id: str
    ended: str
    going: str
    key_id: str

    def named(self, route: Route, *, bound: str = "") -> dict[str, str]:
        """Return what a request of a route is about; who is bound to his run asks for that."""
        going = bound == "run" or "run_ended" in route.errors
        values = (self.session_id, self.agent_id, self.going if going else self.ended, self.going,
                  self.key_id)  # fmt: skip
        return dict(zip(REFERENCES, values, strict=True))


@dataclass(frozen=True)
class Holder:
    """A kind of caller: what he shows, given his own place, and what he may do with it.

    `dead` is the status of what holds no more. `bound` is whether he sees only his session, or only
    his run, of what his tenant has; `root` sees everybody's keys.
    """

    name: str
    tenant: str
    shows: Callable[["Matrix", Place], Awaitable[str | None]]
    may: frozenset[str] = frozenset()
    dead: int | None = None
    bound: str = ""
    root: bool = False

    def refusal(self, route: Route) -> int | None:
        """Return the status with which a route turns him away, None where it does not."""
        if route.permission == OPEN:
            return None
        if self.dead is not None:
            return self.dead
        return None if route.permission in self.may else 403


class Matrix:
    """A server that both tenants use, and their places, new ones when a request changed them."""

    def __init__(self, client: Client, admin_key: str) -> None:
        self.client = client
        self.rig = client.rig
        self.admin_key = admin_key
        self._made = 0
        self._places: dict[tuple[str, str], Place] = {}
        self._shown: dict[object, str] = {}

    async def place(self, tenant: str, whose: str = "own") -> Place:
        """Return a place of a tenant that no request has changed; `whose` tells several apart."""
        if (tenant, whose) not in self._places:
            self._places[tenant, whose] = await self._furnished(tenant)
        return self._places[tenant, whose]

    def changed(self, place: Place) -> None:
        """Forget a place that a request has changed."""
        self._places = {key: kept for key, kept in self._places.items() if kept != place}

    async def _furnished(self, tenant: str) -> Place:
        self._made += 1
        mark = f"{TENANTS[tenant]}-{self._made}"
        place = {"tenant": tenant, "agent_id": f"agent-{mark}", "session_id": f"session-{mark}"}
        caller = f"caller-{mark}"  # one that calls the agent, for none may call itself
        for agent_id in (place["agent_id"], caller):
            agent = Registration(
                tenant=tenant, agent_id=agent_id, name=mark, endpoint=f"http://{mark}"
            )
            await self.rig.engine.agents.register(agent, local(tenant))
        ended = await self.rig.invoke(mark, **place)
        await self.rig.engine.runs.wait(ended.run_id, 10, tenant)
        going = await self._going(**place | {"agent_id": caller}, context={"user_id": mark})
        key = await self.key(tenant, "admin", mark)
        return Place(**place, ended=ended.run_id, going=going, key_id=id_of(key))

    async def below(self, place: Place) -> Place:
        """Return a place whose run was called by the one that goes on there."""
        parent = {"agent_id": place.agent_id, "parent_run_id": place.going}
        return dataclasses.replace(place, going=await self._going(tenant=place.tenant, **parent))

    async def _going(self, **fields: Any) -> str:
        """Return a run whose agent is at work and will stay there."""
        run_id = (await self.rig.invoke("stay", **fields)).run_id
        await until(lambda: any(call.run_id == run_id for call in self.rig.agent.calls))
        return run_id

    async def key(self, tenant: str, role: str, name: str) -> str:
        """Return the text of a key; the same for the same arguments."""
        if (tenant, role, name) not in self._shown:
            made = await self.rig.engine.keys.create(
                NewKey(name=name, role=role, tenant=tenant), local(TENANT)
            )
            self._shown[tenant, role, name] = made.text.reveal()
        return self._shown[tenant, role, name]

    async def session_token(
        self, place: Place, scopes: Sequence[str] = tuple(SESSION_SCOPES), maker: str = "holder"
    ) -> str:
        """Return a token for the session of a place, made with the admin's key of that name."""
        known = (place.session_id, tuple(scopes), maker)
        if known not in self._shown:
            key_id = id_of(await self.key(place.tenant, "admin", maker))
            by = replace(local(place.tenant), key_id=key_id, maker=None)
            token, _ = await self.rig.engine.tokens.for_session(
                place.session_id, by, scopes=list(scopes)
            )
            self._shown[known] = token.reveal()
        return self._shown[known]

    async def run_token(self, run_id: str, scopes: Sequence[str] | None, **changed: Any) -> str:
        """Return a token of a run's attempt as an agent of these scopes gets it."""
        run = await self.rig.store.get(Run, run_id)
        agent = await self.rig.store.get(Agent, run.tenant, run.agent_id)
        invocation = await self.rig.store.get(Invocation, run_id)
        narrow = replace(agent, scopes=None if scopes is None else list(scopes))
        tokens = self.rig.engine.tokens
        return tokens.for_attempt(replace(run, **changed), narrow, invocation).reveal()

    async def rows(self, place: Place) -> list[Any]:
        """Return what the store has of a place."""
        get = self.rig.store.get
        named = [(Session, place.tenant, place.session_id), (Agent, place.tenant, place.agent_id),
                 (Run, place.ended), (Run, place.going), (Key, place.key_id)]  # fmt: skip
        return [await get(*row) for row in named]

    async def ask(
        self, route: Route, path: str, named: dict[str, str], holder: Holder, **others: str
    ) -> Answer:
        """Make a route's request for the things named; of a stream, return what it says by now."""
        shown = await holder.shows(self, await self.place(holder.tenant))
        headers = others if shown is None else {"Authorization": f"Bearer {shown}", **others}
        target = re.sub(r"{(\w+)}", lambda found: (NAMED | named)[found[1]], path)
        asking = self.client.open(route.method, target, body_of(route, named), **headers)
        async with asyncio.timeout(20), asking as (status, told, reader):
            raw = b""
            while COMMENT not in raw and (more := await reader.read(1 << 16)):
                raw += more
            return Answer(status, told, raw)


def id_of(key: str) -> str:
    """Return the id in a key's text."""
    parsed = credentials.parse_key(key)
    assert parsed is not None
    return parsed[0]


def referred(route: Route, path: str) -> set[str]:
    """Return what of a tenant a request of a route names."""
    fields = route.body.__struct_fields__ if route.body is not None else ()
    return {*re.findall(r"{(\w+)}", path), *fields} & set(REFERENCES)


def body_of(route: Route, named: dict[str, str]) -> dict[str, Any] | None:
    """Return a body that the route takes, about the things named."""
    if route.body is None:
        return None
    told = {field: named[field] for field in REFERENCES if field in route.body.__struct_fields__}
    role = "agent" if route.body is CreateKeyBody else "user"
    wanted = {field: VALUES.get(field, "x") for field in route.requires} | told
    return wanted | ({"role": role} if "role" in wanted else {})


# ---------------------------------------------------------------- who calls


def shows_key(tenant: str, role: str) -> Any:
    return lambda matrix, _: matrix.key(tenant, role, "holder")


async def shows_nothing(matrix: Matrix, _: Place) -> None:
    del matrix


async def shows_admin_key(matrix: Matrix, _: Place) -> str:
    return matrix.admin_key


async def shows_expired_key(matrix: Matrix, place: Place) -> str:
    text = await matrix.key(place.tenant, "admin", "expired")
    past = Patch(Key, (id_of(text),), {"expires_at": RealWorld().now()})
    await matrix.rig.store.commit(Op(writes=(past,)))
    return text


async def shows_revoked_key(matrix: Matrix, place: Place) -> str:
    text = await matrix.key(place.tenant, "admin", "revoked")
    await matrix.rig.engine.keys.revoke(id_of(text), local(place.tenant))
    return text


async def shows_mistyped_key(matrix: Matrix, place: Place) -> str:
    text = await matrix.key(place.tenant, "admin", "holder")
    return text[:-1] + ("0" if text[-1] != "0" else "1")


def shows_session(*scopes: str) -> Any:
    return lambda matrix, place: matrix.session_token(place, scopes)


async def shows_session_of_a_revoked_key(matrix: Matrix, place: Place) -> str:
    await shows_revoked_key(matrix, place)
    return await matrix.session_token(place, maker="revoked")


async def shows_session_of_no_key(matrix: Matrix, place: Place) -> str:
    """Show what was made while the server asked for nothing."""
    token, _ = await matrix.rig.engine.tokens.for_session(
        place.session_id, local(place.tenant), scopes=list(SESSION_SCOPES)
    )
    return token.reveal()


async def shows_expired_session(_: Matrix, place: Place) -> str:
    claims = SessionClaims(
        tenant=place.tenant, session_id=place.session_id, scopes=[*SESSION_SCOPES], expires_at=1
    )
    return credentials.write_token(claims, PlainBox().sign).reveal()


async def shows_forged_session(matrix: Matrix, place: Place) -> str:
    text = await matrix.session_token(place)
    return text[:-2] + ("A" if text[-2] != "A" else "B") + text[-1]


def shows_run(scopes: Sequence[str] | None = None, **changed: Any) -> Any:
    return lambda matrix, place: matrix.run_token(place.going, scopes, **changed)


def shows_run_of(place: Place) -> Any:
    return lambda matrix, _: matrix.run_token(place.going, None)


async def shows_run_as_its_agent(matrix: Matrix, place: Place) -> str:
    (call,) = [call for call in matrix.rig.agent.calls if call.run_id == place.going]
    assert call.run_token is not None
    return call.run_token.reveal()


async def shows_run_that_ended(matrix: Matrix, place: Place) -> str:
    return await matrix.run_token(place.ended, None)


def holders(tenant: str) -> list[Holder]:
    """Return every kind of caller of a tenant."""
    found = [Holder(f"key of {role}", tenant, shows_key(tenant, role), may)
             for role, may in ROLES.items()]  # fmt: skip
    dead: list[tuple[str, Any, int]] = [
        ("nobody", shows_nothing, 401),
        ("expired key", shows_expired_key, 401),
        ("revoked key", shows_revoked_key, 401),
        ("mistyped key", shows_mistyped_key, 401),
        ("session of a revoked key", shows_session_of_a_revoked_key, 401),
        ("session of no key", shows_session_of_no_key, 401),
        ("expired session", shows_expired_session, 401),
        ("forged session", shows_forged_session, 401),
        ("expired run", shows_run(deadline_at=1), 401),
        ("ended run", shows_run_that_ended, 409),
        ("earlier attempt", shows_run(attempt=0), 409),
        ("earlier owner", shows_run(epoch=0), 409),
    ]
    found += [Holder(name, tenant, shows, dead=status) for name, shows, status in dead]
    found += [
        Holder(f"session to {scope}", tenant, shows_session(scope), may, bound="session")
        for scope, may in SESSION_SCOPES.items()
    ]
    all_of_them = frozenset().union(*SESSION_SCOPES.values())
    found += [
        Holder("session", tenant, shows_session(*SESSION_SCOPES), all_of_them, bound="session"),
        Holder("run", tenant, shows_run_as_its_agent, RUN_SCOPES, bound="run"),
        Holder("run without scopes", tenant, shows_run([]), bound="run"),
    ]
    return found + [
        Holder(f"run to {scope}", tenant, shows_run([scope]), frozenset({scope}), bound="run")
        for scope in sorted(RUN_SCOPES)
    ]


ADMIN_KEY: Final = Holder("ADMIN_KEY", TENANT, shows_admin_key, ROLES["admin"], root=True)
HOLDERS: Final = [ADMIN_KEY, *(holder for tenant in TENANTS for holder in holders(tenant))]


@asynccontextmanager
async def serving(database: Database, routes: tuple[Route, ...] = ROUTES) -> AsyncIterator[Matrix]:
    """Serve routes to both tenants, with an ADMIN_KEY."""
    admin_key = RealWorld().noise(24).hex()
    settings = {"access": AccessSettings(admin_key=Secret(admin_key))}
    async with api_serving(database, answer_or_stay, settings, routes, keep_alive_s=0.02) as client:
        yield Matrix(client, admin_key)
