"""Requests that the OpenAPI document allows, or just does not: the answers are as it says, too."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote, urlencode

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from orchestrator.api import APISettings, openapi
from orchestrator.api.routes import ROUTES
from orchestrator.core.access import local
from orchestrator.engine import TENANT, Invoke, NewKey, Registration
from orchestrator.world import RealWorld

from ..rigs import Tally
from .mischief import LIKELY, Known, places
from .openapi_check import JSON, Exchange, Sent, Stage, Validator, staged

FULL: Final = 5_000
QUICK: Final = 1_000
STEPS: Final = 10
"""Requests of one example; each has a tenant of its own, so that it can be played again."""
STRIDE: Final = 13
"""From one operation of an example to the next, in the order of their names."""
DOCUMENT: Final = openapi.document(ROUTES, "0")
SCHEMAS: Final = DOCUMENT["components"]["schemas"]
OPERATIONS: Final[dict[str, tuple[str, str, dict[str, Any]]]] = {
    operation["operationId"]: (path, method.upper(), operation)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
}


class Thing(NamedTuple):
    """A name that is not there before it is used: one of those that answers have had."""

    field: str
    number: int


class Twist(NamedTuple):
    """A change to a body: at one of its places something is dropped, or put instead or beside."""

    kind: str
    number: int
    value: Any


class Step(NamedTuple):
    """A request that is still without the names of things."""

    operation: str
    names: dict[str, Any]
    query: dict[str, Any]
    headers: dict[str, Any]
    body: Any
    twist: Twist | None


# ---------------------------------------------------------------- what the document allows

TEXT: Final = st.text(max_size=30)
NUMBER: Final = st.integers() | st.integers(0, 5000)
ANYTHING: Final = st.recursive(
    st.none() | st.booleans() | NUMBER | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


def values(schema: dict[str, Any], name: str = "") -> SearchStrategy[Any]:
    """Return what a schema allows, more often what the server may go on with."""
    if "$ref" in schema:
        return values(SCHEMAS[schema["$ref"].rpartition("/")[2]], name)
    if "anyOf" in schema:
        return st.one_of([values(part, name) for part in schema["anyOf"]])
    match schema.get("type"):
        case "object":
            return objects(schema)
        case "array":
            return st.lists(values(schema["items"]), max_size=3)
        case "string":
            return texts(name)
        case None:
            assert not schema.keys() - {"default"}, f"a schema of a kind not seen before: {schema}"
            return st.just("hello") | ANYTHING
        case kind:
            return {"integer": NUMBER, "boolean": st.booleans(), "null": st.none()}[kind]


def texts(name: str) -> SearchStrategy[Any]:
    """Return texts: those that a field of this name is likely to have, names of things, any."""
    likely = [value for value in LIKELY.get(name, ()) if isinstance(value, str)]
    if name.endswith("_id") and not likely:
        thing = st.builds(Thing, st.just(name.removeprefix("parent_")), st.integers(0, 9))
        return thing | thing | TEXT
    return st.sampled_from(likely) | TEXT if likely else TEXT


def objects(schema: dict[str, Any]) -> SearchStrategy[dict[str, Any]]:
    """Return objects with what is required, and some of the rest."""
    required, says = schema.get("required", ()), "content" in schema.get("properties", {})
    parts = {
        name: values(part, "speaker" if says and name == "role" else name)
        for name, part in schema.get("properties", {}).items()
    }
    known = st.fixed_dictionaries(
        {name: part for name, part in parts.items() if name in required},
        optional={name: part for name, part in parts.items() if name not in required},
    )
    others = schema.get("additionalProperties", {})
    if others is False:
        return known
    more = st.dictionaries(TEXT.filter(lambda name: name not in parts), values(others), max_size=1)
    return st.builds(lambda found, added: added | found, known, more)


def parameters(operation: dict[str, Any], place: str) -> SearchStrategy[dict[str, Any]]:
    """Return parameters as the document has them, and numbers that are none."""
    found = {
        one["name"]: st.integers(-9, 2000).map(str) | st.sampled_from(("x", "1.5", ""))
        if one["schema"]["type"] == "integer" else texts(one["name"])
        for one in operation.get("parameters", ()) if one["in"] == place
    }  # fmt: skip
    return st.fixed_dictionaries({}, optional=found)


def steps(operation_id: str) -> SearchStrategy[Step]:
    """Return requests of an operation; of those with a body, every second one is changed."""
    _, _, operation = OPERATIONS[operation_id]
    found = operation.get("parameters", ())
    names = {one["name"]: texts(one["name"]) for one in found if one["in"] == "path"}
    body: SearchStrategy[Any] = st.none()
    twist: SearchStrategy[Any] = st.none()
    if "requestBody" in operation:
        body = values(operation["requestBody"]["content"][JSON]["schema"])
        body = body if operation["requestBody"]["required"] else body | st.none()
        kinds = st.sampled_from(("drop", "replace", "replace", "add"))
        other: SearchStrategy[Any] = st.just([[]]) | st.just({"a": {}}) | ANYTHING
        twist = st.none() | st.builds(Twist, kinds, st.integers(0, 9), other)
    return st.builds(
        Step, st.just(operation_id), st.fixed_dictionaries(names), parameters(operation, "query"),
        parameters(operation, "header"), body, twist,
    )  # fmt: skip


STEPS_OF: Final = {operation_id: steps(operation_id) for operation_id in sorted(OPERATIONS)}


@st.composite
def plans(draw: st.DrawFn) -> list[Step]:
    """Return one request each of several operations, all operations alike often in the end."""
    names = list(STEPS_OF)
    start = draw(st.integers(0, len(names) - 1))
    return [draw(STEPS_OF[names[(start + STRIDE * n) % len(names)]]) for n in range(STEPS)]


# ---------------------------------------------------------------- what is sent, and what comes


class Play:
    """One example: requests with a key of a tenant that has an agent, a run and a session."""

    def __init__(self, stage: Stage, tally: Tally) -> None:
        self._stage = stage
        self._tally = tally
        self._known = Known()
        self._key = ""

    async def play(self, plan: list[Step]) -> None:
        """Make the requests one after the other; raises AssertionError for what does not fit."""
        await self._furnish()
        for step in plan:
            await self._step(step)

    async def _furnish(self) -> None:
        engine, tenant = self._stage.rig.engine, f"t{RealWorld().noise(8).hex()}"
        made = await engine.keys.create(
            NewKey(name="k", role="admin", tenant=tenant), local(TENANT)
        )
        self._key = made.text.reveal()
        agent = Registration(tenant=tenant, agent_id="demo", name="demo", endpoint="http://agent")
        await engine.agents.register(agent, local(tenant))
        asked = Invoke(tenant=tenant, agent_id="demo", session_id="s1", content="hello")
        run = (await engine.runs.invoke(asked)).run
        await engine.runs.wait(run.run_id, 10, tenant)
        key = await engine.keys.create(
            NewKey(name="k", role="viewer", tenant=tenant), local(TENANT)
        )
        self._known.learn({"agent_id": "demo", "session_id": "s1", "run_id": run.run_id})
        self._known.learn({"key_id": key.key.key_id, "message_id": run.message_id})

    async def _step(self, step: Step) -> None:
        sent, body = self._sent(step)
        answer = await Exchange(sent).through(self._stage.app)
        wrong = [*self._stage.contract.objections(answer), *self._stage.heard]
        self._stage.heard.clear()
        wrong += self._about_the_body(answer, body)
        self._tally.round()
        self._tally.fire(step.operation)
        assert not wrong, f"{sent}\n    {answer.status} {answer.body[:500]!r}\n    {wrong}"
        if answer.status in {200, 201} and answer.headers.get("content-type") == JSON:
            self._known.learn(msgspec.json.decode(answer.body))

    def _sent(self, step: Step) -> tuple[Sent, Any]:
        path, method, _ = OPERATIONS[step.operation]
        for name, value in step.names.items():
            path = path.replace(f"{{{name}}}", quote(self._named(value), safe="") or "x")
        body = twisted(self._named(step.body), step.twist)
        headers = [(b"host", b"localhost"), (b"authorization", b"Bearer " + self._key.encode())]
        headers += [
            (name.lower().encode(), self._named(value).encode("latin-1", "replace"))
            for name, value in step.headers.items()
        ]
        query = urlencode({name: self._named(value) for name, value in step.query.items()})
        raw = b"" if step.body is None else msgspec.json.encode(body)
        return Sent(method, path.encode(), query.encode(), headers, [raw]), body

    def _named(self, value: Any) -> Any:
        """Put the names of things in place of what stands for them."""
        match value:
            case Thing(field=field, number=number):
                pool = self._known.names[field]
                return pool[number % len(pool)] if pool else "x"
            case dict():
                return {name: self._named(part) for name, part in value.items()}
            case list():
                return [self._named(part) for part in value]
            case _:
                return value

    def _about_the_body(self, answer: Exchange, body: Any) -> Iterator[str]:
        """Say whether a body was refused that the document allows, or taken that it does not."""
        operation = self._stage.contract.operation(answer.sent.method, answer.scope["path"])
        if body is None or operation is None or "requestBody" not in operation:
            return
        schema = operation["requestBody"]["content"][JSON]["schema"]
        allowed = Validator(schema | DOCUMENT).is_valid(body)
        self._tally.fire("allowed" if allowed else "not allowed")
        if allowed and b'"invalid request body"' in answer.body:
            yield "the document allows this body"
        if not allowed and answer.status < 400:
            yield "the document does not allow this body"


def twisted(body: Any, twist: Twist | None) -> Any:
    """Return a body with a change in it."""
    found = list(places(body))
    if twist is None or not found:
        return body
    holder, key = found[twist.number % len(found)]
    if twist.kind == "drop":
        del holder[key]
    elif twist.kind == "replace":
        holder[key] = twist.value
    elif isinstance(holder, dict):
        holder["beside"] = twist.value
    return body


async def test_answers_to_what_the_document_allows_are_as_it_says(
    tally: Tally, rounds_of: Callable[[int], int], ground: Path
) -> None:
    count = min(FULL, rounds_of(20 * QUICK))  # a fifth of the rounds, not a twentieth
    tally.expect("allowed", "not allowed", *OPERATIONS)
    loop = asyncio.get_running_loop()
    api = APISettings(keep_alive_s=1.0, wait_s=0.02)
    async with staged(ground, RealWorld().noise(24).hex(), api) as stage:

        @settings(max_examples=-(-count // STEPS), suppress_health_check=list(HealthCheck))
        @given(plans())
        def play(plan: list[Step]) -> None:
            asyncio.run_coroutine_threadsafe(Play(stage, tally).play(plan), loop).result()

        await asyncio.to_thread(play)
