"""Requests put straight into the application, and whether its answers fit the OpenAPI document."""

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import msgspec
import structlog
from jsonschema.validators import extend  # type: ignore[import-untyped]  # it says no types
from openapi_schema_validator import OAS31Validator
from starlette.types import ASGIApp, Message, Scope

from orchestrator.api import APISettings, create_app, openapi
from orchestrator.api.routes import ROUTES
from orchestrator.api.wire import CONNECTION
from orchestrator.core.frames import Delta, Done, Frame
from orchestrator.core.secret import Secret
from orchestrator.engine.limits import AccessSettings
from orchestrator.ports import AgentCall

from ..engine.rig import Rig, running

ERRORS: Final = Path(__file__).parents[2] / "docs" / "errors.md"
STAY: Final = "stay"
"""What an agent is told that is to work until its run is ended."""
TURNS: Final = 8
"""Turns of the loop after which the reader of a stream has seen enough, and hangs up."""
PATIENCE_S: Final = 20.0
JSON: Final = "application/json"
EVENTS: Final = "text/event-stream"
_PROBLEM: Final = {"content": {JSON: {"schema": {"$ref": "#/components/schemas/ProblemAnswer"}}}}
_REMEMBERED: Final = 2000
"""Characters of an answer that is remembered as fitting, and how many are."""
_FIELD: Final = re.compile(rb"(?::.*|id: [^\n]+|event: [^\n]+|data: (.+))\Z", re.DOTALL)


@dataclass
class Sent:
    """A request: its path as it stands on the wire, its body in the pieces that it comes in.

    With `stalls` the rest of the body never comes; after `leaves` turns of the loop the caller has
    gone.
    """

    method: str
    path: bytes
    query: bytes = b""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    pieces: list[bytes] = field(default_factory=lambda: [b""])
    stalls: bool = False
    leaves: int | None = None

    def __str__(self) -> str:
        """Return what is needed to send it again, large values cut."""
        headers = [(name, value[:200]) for name, value in self.headers]
        body = b"".join(self.pieces)
        cut = f" of {len(body)} bytes" if len(body) > 2000 else ""
        return (
            f"{self.method[:60]} {self.path[:300]!r}?{self.query[:300]!r} {headers} "
            f"body {body[:2000]!r}{cut}"
        )


class Exchange:
    """A request and its answer as ASGI has them, and the connection that a stream asks for."""

    def __init__(self, sent: Sent) -> None:
        self.sent = sent
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.over = self.gone = False
        self._pieces = list(sent.pieces)
        self._gone = asyncio.Event()
        self.scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": sent.method,
            "scheme": "http",
            "path": unquote(sent.path.decode("ascii")),
            "raw_path": sent.path,
            "query_string": sent.query,
            "root_path": "",
            "headers": sent.headers,
            "client": ("127.0.0.1", 50_000),
            "server": ("127.0.0.1", 8080),
            CONNECTION: self,
        }
        # From here on it is what api.wire knows of uvicorn's protocol.
        self.cycle = self.flow = self.transport = self
        self.disconnected = self.chunked_encoding = self.write_paused = False
        self.left: Callable[[], None] | None = None

    async def through(self, app: ASGIApp) -> "Exchange":
        """Put the request into the application and return with its answer."""
        if self.sent.leaves is not None:
            self._hang_up_after(self.sent.leaves)
        async with asyncio.timeout(PATIENCE_S):
            await app(self.scope, self.receive, self.send)
        return self

    async def receive(self) -> Message:
        """Hand out the body, then nothing until the caller has gone."""
        if self._pieces and not self.gone:
            piece = self._pieces.pop(0)
            more = bool(self._pieces) or self.sent.stalls
            return {"type": "http.request", "body": piece, "more_body": more}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Take the answer; raises AssertionError where uvicorn would refuse it."""
        if message["type"] == "http.response.start":
            assert not self.status, "an answer begins once"
            self.status = message["status"]
            self.headers = {
                name.decode("latin-1"): value.decode("latin-1")
                for name, value in message["headers"]
            }
            assert len(self.headers) == len(message["headers"]), "a header came twice"
            if self.headers.get("content-type", "").startswith(EVENTS) and not self.gone:
                self._hang_up_after(TURNS)
            return
        assert self.status, "a body without a start"
        assert not self.over, "nothing follows the end"
        self.write(message.get("body", b""))
        self.over = not message.get("more_body", False)

    def write(self, data: bytes) -> None:
        """Take a piece of the body."""
        self.body += data

    def is_closing(self) -> bool:
        """Return whether the connection is over."""
        return self.gone

    def abort(self) -> None:
        """Give the connection up."""
        self._hang_up()

    def _hang_up_after(self, turns: int) -> None:
        if turns > 0:
            asyncio.get_running_loop().call_soon(self._hang_up_after, turns - 1)
        else:
            self._hang_up()

    def _hang_up(self) -> None:
        self.gone = self.disconnected = True
        self._gone.set()
        if self.left is not None:
            self.left()


def _chosen(validator: Any, options: Any, value: Any, schema: Any) -> Iterator[Any]:
    """Check one of several schemas: the one that the discriminator names, where there is one."""
    choice = schema.get("discriminator")
    if choice is None:
        yield from OAS31Validator.VALIDATORS["oneOf"](validator, options, value, schema)
        return
    name = value.get(choice["propertyName"])
    ref = choice["mapping"].get(name) if isinstance(name, str) else None
    yield from validator.descend(value, False if ref is None else {"$ref": ref})


def _is_integer(_: object, value: object) -> bool:
    """Return whether a value is written as a whole number: JSON Schema takes 1.0 for one, too."""
    return isinstance(value, int) and not isinstance(value, bool)


Validator: Final = extend(
    OAS31Validator,
    {"oneOf": _chosen},
    type_checker=OAS31Validator.TYPE_CHECKER.redefine("integer", _is_integer),
)


class Contract:
    """What the OpenAPI document and docs/errors.md promise of every answer."""

    def __init__(self, document: dict[str, Any], errors: str) -> None:
        self.document = document
        schemas = document["components"]["schemas"]
        self.codes = set(
            re.findall(r"^### (\w+)$", errors.partition("\n## How a run")[0], re.MULTILINE)
        )
        self._validators = {
            name: Validator({"$ref": f"#/components/schemas/{name}"} | document) for name in schemas
        }
        self._paths = [
            (re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path))), methods)
            for path, methods in sorted(document["paths"].items(), key=_precedence)
        ]
        self._fitting: set[tuple[str, bytes]] = set()

    def operation(self, method: str, path: str) -> dict[str, Any] | None:
        """Return the operation of a method on a decoded path, HEAD like GET; None without one."""
        methods = self._methods(path)
        return methods.get("get" if method == "HEAD" else method.lower()) if methods else None

    def _methods(self, path: str) -> dict[str, Any] | None:
        return next((methods for form, methods in self._paths if form.fullmatch(path)), None)

    def objections(self, answer: Exchange) -> list[str]:
        """Return what of an answer is not as it was promised."""
        if not answer.status:
            return [] if answer.gone else ["no answer at all"]
        if not answer.over and not answer.gone:
            return ["the answer did not end"]
        return [*self._headers(answer), *self._content(answer)]

    def _headers(self, answer: Exchange) -> Iterator[str]:
        if answer.status == 500 or answer.status > 503:
            yield f"{answer.status} is a failure of ours"
        if answer.status == 401 and "www-authenticate" not in answer.headers:
            yield "401 without WWW-Authenticate"
        if answer.status in {429, 503} and "retry-after" not in answer.headers:
            yield f"{answer.status} without Retry-After"
        if answer.status == 405 and "allow" not in answer.headers:
            yield "405 without Allow"

    def _content(self, answer: Exchange) -> Iterator[str]:
        operation = self.operation(answer.sent.method, answer.scope["path"])
        responses = operation["responses"] if operation else {"default": _PROBLEM}
        found = responses.get(str(answer.status))
        if found is None and answer.status < 400:
            yield f"an answer {answer.status} that the document does not have"
        else:
            yield from self._body(answer, (found or responses["default"]).get("content", {}))

    def _body(self, answer: Exchange, content: dict[str, Any]) -> Iterator[str]:
        kind = answer.headers.get("content-type", "").partition(";")[0]
        length = answer.headers.get("content-length")
        if length is not None and int(length) != len(answer.body):
            yield f"Content-Length is {length}, the body has {len(answer.body)} bytes"
        if not content:
            if answer.body or kind:
                yield f"a body of type {kind!r} where the document has none"
        elif kind not in content:
            yield f"the type {kind!r}, where the document has {', '.join(content)}"
        elif kind == EVENTS:
            yield from _frames(answer.body)
        elif kind == JSON:
            yield from self._json(answer.body, content[kind]["schema"])

    def _json(self, raw: bytes, schema: dict[str, Any]) -> Iterator[str]:
        name = schema.get("$ref", "").rpartition("/")[2]
        if (name, raw) in self._fitting:
            return
        try:
            value = msgspec.json.decode(raw)
        except msgspec.DecodeError as error:
            yield f"the body is not JSON: {error}"
            return
        wrong = list(self._wrong(name, schema, value))
        yield from wrong
        if not wrong and len(raw) < _REMEMBERED and len(self._fitting) < _REMEMBERED:
            self._fitting.add((name, raw))

    def _wrong(self, name: str, schema: dict[str, Any], value: Any) -> Iterator[str]:
        validator = self._validators[name] if name else Validator(schema)
        for error in validator.iter_errors(value):
            yield f"{name}: {error.json_path}: {error.message[:100]}"
        if name == "ProblemAnswer" and value.get("code") not in self.codes:
            yield f"the code {value.get('code')!r} is not in docs/errors.md"


def _precedence(item: tuple[str, Any]) -> tuple[int, int]:
    """Sort paths as they are chosen: what is written out before what is a name."""
    return item[0].count("{"), -len(item[0])


def _frames(raw: bytes) -> Iterator[str]:
    """Say which lines of a stream are none of ours; the last frame may have been cut."""
    for frame in raw.split(b"\n\n")[:-1]:
        for line in frame.split(b"\n"):
            found = _FIELD.match(line)
            if found is None:
                yield f"the line {line[:200]!r} of a stream"
            elif found[1] is not None:
                msgspec.json.decode(found[1])


@contextmanager
def listening() -> Iterator[list[str]]:
    """Hand out what the server logs as an error while the block runs; the rest is not printed."""
    heard: list[str] = []

    def hear(_: Any, level: str, event: Any) -> Any:
        if level in {"error", "exception", "critical"}:
            heard.append(f"{event['event']}: {sys.exception()!r}")
        raise structlog.DropEvent

    processors = structlog.get_config()["processors"]
    before = [*processors]
    processors[:] = [hear]
    try:
        yield heard
    finally:
        processors[:] = before


async def say_or_stay(call: AgentCall) -> AsyncIterator[Sequence[Frame]]:
    """Answer at once, or work until the run is ended."""
    if call.content == STAY:
        await asyncio.Event().wait()
    yield [Delta("yes"), Done(usage={"tokens": 1})]


@dataclass
class Stage:
    """The application over a real engine, and what it promises."""

    rig: Rig
    app: ASGIApp
    contract: Contract
    heard: list[str]


@asynccontextmanager
async def staged(
    folder: Path, admin_key: str | None, settings: APISettings, **engine: Any
) -> AsyncIterator[Stage]:
    """Run the application on a new database in `folder`; without an `admin_key` it has no keys."""
    access = AccessSettings(admin_key=Secret(admin_key) if admin_key else None)
    contract = Contract(openapi.document(ROUTES, settings.version), ERRORS.read_text())
    with listening() as heard:
        async with running(folder / "o.db", say_or_stay, access=access, **engine) as rig:
            yield Stage(rig, create_app(rig.engine, settings), contract, heard)
