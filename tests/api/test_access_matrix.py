"""Every route for every kind of caller: the answer is what the tables of roles and routes say.

On PostgreSQL a route meets every fourth caller, the next one others: who may do what is no question
of the store, and what it finds by tenant is asked often enough.
"""

from collections.abc import Sequence
from typing import Final

import pytest
from msgspec.structs import replace

from orchestrator.api import APISettings, create_app
from orchestrator.api.routes import ROUTES
from orchestrator.api.table import Route
from orchestrator.core.access import OPEN, RUN_SCOPES
from orchestrator.engine import TENANT

from ..stores import Kept
from .conftest import Database
from .holders import (
    HOLDERS,
    TENANTS,
    Holder,
    Matrix,
    Place,
    body_of,
    referred,
    serving,
    shows_nothing,
    shows_run_of,
)

REFUSALS: Final = {
    401: {"unauthorized"}, 403: {"forbidden"}, 409: {"run_not_active", "stale_attempt"},
}  # fmt: skip
PATHS: Final = [(route, path) for route in ROUTES for path in (route.path, *route.also)]
NAMING: Final = [
    route
    for route in ROUTES
    if any(query.name == "tenant" for query in route.query)
    or (route.body is not None and "tenant" in route.body.__struct_fields__)
]
"""Routes with which a tenant can be named."""
NAMES: Final = [f"{route.method} {path}" for route, path in PATHS]
SHARE: Final = 4
"""One in how many callers a route meets on PostgreSQL."""


async def check(matrix: Matrix, route: Route, path: str, holder: Holder) -> None:
    """Ask for what is his own, what is beside it, and what is another tenant's."""
    other = next(tenant for tenant in TENANTS if tenant != holder.tenant)
    own, foreign = await matrix.place(holder.tenant), await matrix.place(other)
    named = own.named(route, bound=holder.bound)
    about = referred(route, path)
    refusal = holder.refusal(route)
    if refusal is not None:
        await refused(matrix, route, path, holder, refusal)
        return
    if holder.bound and about & {"session_id", "run_id", "parent_run_id"}:
        await hidden_beside(matrix, route, path, holder)
    if holder.root and "key_id" in about:
        assert (await matrix.ask(route, path, foreign.named(route), holder)).status < 400
        matrix.changed(foreign)
    elif about:
        await hidden_abroad(matrix, route, path, holder, foreign)
    answer = await matrix.ask(route, path, named, holder)
    assert answer.status in {route.status, *(o.status for o in route.others if o.status < 400)}
    text = answer.raw.decode()
    if not (holder.root and route.permission.startswith("keys:")):
        assert TENANTS[other] not in text
    if holder.bound:
        beside = await matrix.place(holder.tenant, "beside")
        assert not any(name in text for name in (beside.session_id, beside.ended, beside.going))
    if route.method != "GET":
        matrix.changed(own)


async def refused(matrix: Matrix, route: Route, path: str, holder: Holder, status: int) -> None:
    """Ask in vain: the answer is the same for everything, and nothing has changed."""
    for tenant in TENANTS:
        place = await matrix.place(tenant)
        before = await matrix.rows(place)
        answer = await matrix.ask(route, path, place.named(route, bound=holder.bound), holder)
        assert (answer.status, tenant) == (status, tenant)
        assert answer.json["code"] in REFUSALS[status]
        assert ("www-authenticate" in answer.headers) == (status == 401)
        assert await matrix.rows(place) == before


async def hidden_beside(matrix: Matrix, route: Route, path: str, holder: Holder) -> None:
    """Ask for a session or a run beside the own one: it is not found."""
    own, beside = await matrix.place(holder.tenant), await matrix.place(holder.tenant, "beside")
    before = await matrix.rows(beside)
    named = beside.named(route, bound=holder.bound) | {"agent_id": own.agent_id}
    answer = await matrix.ask(route, path, named, holder)
    assert answer.status == 404
    assert answer.json["code"].endswith("_not_found")
    assert await matrix.rows(beside) == before


async def hidden_abroad(
    matrix: Matrix, route: Route, path: str, holder: Holder, foreign: Place
) -> None:
    """Ask for what is another tenant's: it is as if it were nowhere."""
    nothing = Place(holder.tenant, "session-x", "agent-x", "run_x", "run_y", "key-x")
    before = await matrix.rows(foreign)
    told = []
    for place in (foreign, nothing):
        named = place.named(route, bound=holder.bound)
        answer = await matrix.ask(route, path, named, holder)
        text = answer.raw.decode()
        for name in sorted(named.values(), key=len, reverse=True):
            text = text.replace(name, "it")
        assert TENANTS[foreign.tenant] not in text
        told.append((answer.status, text if answer.status >= 400 else ""))
    assert told[0] == told[1]
    if any(code.endswith("_not_found") for code in route.errors):
        assert told[0][0] == 404
    assert await matrix.rows(foreign) == before


async def wrong(
    matrix: Matrix, route: Route, path: str, callers: Sequence[Holder] = HOLDERS
) -> list[str]:
    """Return the callers whom a route does not answer as it should, each with what was wrong."""
    found = []
    for holder in callers:
        try:
            await check(matrix, route, path, holder)
        except AssertionError as error:
            found.append(f"{holder.name} of {holder.tenant}: {error}")
    return found


@pytest.mark.parametrize(("route", "path"), PATHS, ids=NAMES)
async def test_a_route_answers_each_caller_as_the_tables_say(
    route: Route, path: str, database: Database, kept_together: Kept
) -> None:
    place = PATHS.index((route, path)) % SHARE
    callers = HOLDERS[place::SHARE] if kept_together.postgres else HOLDERS
    async with serving(database) as matrix:
        found = await wrong(matrix, route, path, callers)
    assert found == []


async def test_the_matrix_sees_a_route_that_lost_its_check(database: Database) -> None:
    opened = tuple(replace(route, permission=OPEN) for route in ROUTES)
    nobody = [holder for holder in HOLDERS if holder.name == "nobody"]
    async with serving(database, opened) as matrix:
        seen = {path for route, path in PATHS if await wrong(matrix, route, path, nobody)}
    assert seen == {path for route, path in PATHS if route.permission != OPEN}


def test_a_route_of_an_unknown_permission_does_not_start() -> None:
    flying = replace(ROUTES[0], permission="runs:fly")
    with pytest.raises(ValueError, match="GET /health has no permission of the table"):
        create_app(None, APISettings(), (flying,))  # type: ignore[arg-type]  # never called


@pytest.mark.parametrize("accept", ["", "text/event-stream"])
async def test_a_token_in_the_address_opens_streams_only(database: Database, accept: str) -> None:
    nothing = Holder("address", "other", shows_nothing)
    async with serving(database) as matrix:
        place = await matrix.place("other")
        token = await matrix.session_token(place)
        key = await matrix.key("other", "admin", "holder")
        for shown, opened in ((token, 200), (key, 401)):
            for route, path in PATHS:
                streams = route.stream == "always" or (route.stream and accept)
                wanted = opened if streams and route.method == "GET" else 400
                named, asked = place.named(route), f"{path}?token={shown}"
                answer = await matrix.ask(route, asked, named, nothing, Accept=accept)
                expected = route.status if route.permission == OPEN else wanted
                assert (answer.status, path) == (expected, path)


async def test_a_run_reaches_those_below_it_and_not_the_one_above(database: Database) -> None:
    routes = [(r, p) for r, p in PATHS if "{run_id}" in p and r.permission in RUN_SCOPES]
    assert routes
    async with serving(database) as matrix:
        for route, path in routes:
            above = await matrix.place("other")
            below = await matrix.below(above)
            for asker, asked, found in ((below, above, False), (above, below, True)):
                holder = Holder("run", "other", shows_run_of(asker))
                answer = await matrix.ask(route, path, asked.named(route, bound="run"), holder)
                assert (answer.status, path) == (200 if found else 404, path)
            matrix.changed(above)


async def test_another_tenant_is_named_by_the_operator_alone(database: Database) -> None:
    async with serving(database) as matrix:
        place = await matrix.place("other")
        key = await matrix.key("other", "admin", "holder")
        for route in NAMING:
            told = []
            for tenant, shown in ((TENANT, key), ("nowhere", key), ("other", matrix.admin_key)):
                body = body_of(route, place.named(route))
                target = f"{route.path}?tenant={tenant}" if body is None else route.path
                sent = None if body is None else body | {"tenant": tenant}
                answer = await matrix.client.call(
                    route.method, target, sent, Authorization=f"Bearer {shown}"
                )
                told.append((answer.status, answer.raw))
            assert told[0] == told[1], "whether there is such a tenant or not"
            assert [status for status, _ in told] == [403, 403, route.status]
