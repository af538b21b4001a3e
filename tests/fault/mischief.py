"""Requests that the OpenAPI document allows, and every way in which one can be malformed."""

import re
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final, TypeAlias
from urllib.parse import quote

import msgspec

from orchestrator.core.access import ROLES

from .openapi_check import STAY, Sent

Raw: Final = msgspec.Raw
MIB: Final = 1 << 20
NAMES_KEPT: Final = 30
"""Names and credentials that are remembered; older ones were used enough."""

TEXTS: Final = ("hello", "x" * 300, "ünï ✓ 😀", "two\nlines", " ", STAY, STAY)
LIKELY: Final[dict[str, tuple[Any, ...]]] = {
    "role": (*ROLES,), "speaker": ("user", "assistant"), "endpoint": ("http://agent", "https://agent:1/x"),
    "scopes": (["read"], ["read", "invoke"], ["runs:read"], []), "type": ("bearer",),
    "protocol": ("native",), "on_lost": ("fail", "retry"),
    "on_busy": (*["enqueue"] * 5, "reject"), "on_disconnect": ("keep", "cancel"),
    "environment": ("live", "test"), "limits": ({"*": "600/m"}, {"invoke": "1/s"}, {}),
    "tenant": ("default", "other"), "codes": (["agent_eof"], []), "wait": (True,),
    "parent_run_id": (None, None, None), "overlap_s": (0, 3600), "request_id": ("r1", "r2", "r3"),
    "idempotency_key": ("i1", "i2"), "Idempotency-Key": ("i1", "i2"), "Last-Event-ID": ("1", "2.0"),
    "max_attempts": (1, 3), "status": ("healthy", "DONE"), "types": ("run_done", "run_failed"),
    "limit": ("1", "1000"), "after_seq": ("1", "99"), "cursor": ("1", "eyJzZXFzIjp7fX0"),
    "token": ("t0k3n",),
}  # fmt: skip
"""What a field or a parameter of this name may well be."""

ODD: Final[dict[str, tuple[Any, ...]]] = {
    "wrong_type": (None, True, 0, "", "x", [], {}, [None], {"": None}, [[1], {"a": []}], 1.5, "1"),
    "odd_number": (-1, 0, 1 << 53, (1 << 53) + 1, 1 << 63, -(1 << 63), (1 << 64) - 1, 1e308, -0.0,
                   Raw(b"1.0"), Raw(b"1e3"), Raw(b"-0"), Raw(b"0.1e-400")),
    "huge_number": (Raw(b"9" * 400), Raw(b"9" * 5000), Raw(b"-" + b"9" * 30), Raw(b"1e999"),
                    Raw(b"-1E+9999999999"), Raw(b"0." + b"1" * 5000)),
    "no_number": (Raw(b"NaN"), Raw(b"Infinity"), Raw(b"01"), Raw(b"+1"), Raw(b"1."), Raw(b"0x1"),
                  Raw(b"--1"), Raw(b"1_000"), Raw("١".encode())),
    "surrogate": (Raw(rb'"\ud83d"'), Raw(rb'"\ude00\ud83d"'), Raw(rb'"a\uD800"'),
                  Raw(b'"\xed\xa0\x80"'), Raw(rb'{"\udfff":1}'), Raw(rb'"\\\ud83d\u0041"')),
    "control": ("\0", "a\0b", "\x1b[31m", "\r\nX: y", "\x7f\x85\u2028", "\ufeff", "\ufffe",
                Raw(b'"\x01"'), Raw(b'"\t"'), Raw(rb'"\u0000"'), {"\0": "\0"}),
    "deep": (Raw(b"[" * 250 + b"]" * 250), Raw(b"[" * 257 + b"]" * 257), Raw(b"[" * 20_000),
             Raw(b'{"a":' * 300 + b"1" + b"}" * 300)),
    "long_text": ("y" * 129, "y" * 257, "y" * 2049, "y" * 40_000, "é" * 257, {"k" * 300: "v"}),
    "odd_text": ("../../etc", "a/b", "a:b", "%00", "' OR 1=1 --", "{{7*7}}", "${jndi:x}", "null",
                 "http://", "http://[", "http://a b", "ftp://x", "http://x/?q", "http://u:p@x",
                 "http://xn--", "javascript:x", "9/0", "1/fortnight", "-1/s", "·" * 20),
}  # fmt: skip
"""Values by what is odd about them; Raw stands in the JSON as it is."""
PIECES: Final = (
    b"%", b"%zz", b"%00", b"%0a", b"%0d%0aX:y", b"%ff", b"%c0%af", b"%ed%a0%80", b"%2e%2e/", b"../",
    b"./", b"//", b"%2f", b"%25", b"%2500", b"%F0%9F%98%80", b":", b":cancel", b":rerun", b"*",
    b"{run_id}", b";v=1", b"'", b'"', b"\\", b"<b>", b"+", b"~", b"%20", b"/", b"%C2%85", b"%3f",
)  # fmt: skip
METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT",
                  "PROPFIND", "M-SEARCH", "get", "BREW", "")  # fmt: skip
NUMBERS: Final = ("", "0", "-1", "1.5", "1e3", "+1", "%201", "0x10", "9" * 17, "9" * 5000, "1001",
                  "%D9%A3", "9007199254740993", "NaN", "null", "17.1", "17.-1", "1.1.1",
                  "1_0")  # fmt: skip
TYPES: Final = (b"", b"text/plain", b"application/x-www-form-urlencoded", b"multipart/form-data",
                b"application/json; charset=utf-16", b"\xff\xfe", b"application/xml",
                b",,;;==")  # fmt: skip
NAMES: Final = (
    b"accept", b"last-event-id", b"idempotency-key", b"traceparent", b"tracestate", b"origin",
    b"cookie", b"x-forwarded-for", b"forwarded", b"via", b"host", b"expect",
    b"transfer-encoding", b"x-http-method-override", b"range", b"if-none-match", b"upgrade",
    b"content-encoding", b"access-control-request-method",
)  # fmt: skip
TOLD: Final = (
    b"", b"*/*", b"text/event-stream", b"text/event-stream;q=0", b"gzip", b"x" * 300, b"\xff\xfe",
    b"\x00", b'a, b; c="', b"17", b"17.0", b"9" * 5000, b"-1", b"17.9", b"100-continue", b"chunked",
    b"00-" + b"0" * 32 + b"-" + b"1" * 16 + b"-01", b"00-" + b"a" * 32 + b"-" + b"1" * 16 + b"-01",
    b"http://evil.example", b"https://pages.example", b"1.1.1.1, ::1, x", b"127.0.0.1", b"POST",
    b'for="[::1]"', b"localhost", b"localhost:80@evil", b"bytes=0-0", b"2000000",
)  # fmt: skip
"""What stands in headers."""
BODIES: Final = (
    b"", b" ", b"null", b"[]", b"1", b'"x"', b"{", b"}", b"{}{}", b"{'a':1}", b"\xef\xbb\xbf{}",
    b"[" * 100_000, '{"a":1}'.encode("utf-16"), b"a=1&b=2", b"\x1f\x8b\x08\x00\x00", b"\x00",
    b"--x\r\nContent-Disposition: form-data\r\n\r\n{}\r\n--x--", b"<a/>", b"{}\n{}", b"\xff" * 50,
)  # fmt: skip
CREDENTIALS: Final = (
    "", "ok_", "ok_live_", "ok_live_x_y", "ort_", "ost_.", "ort_a.b", "ost_" + "A" * 20_000,
    "\xff\xfe", "a b", "null", "Bearer", "\x00", "ok_LIVE_x", "." * 3000,
    "ok_live_" + "0" * 26 + "_" + "0" * 64, "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0.",
    "ort_e30." + "A" * 43, "ost_e30." + "-" * 43,
)  # fmt: skip


class Known:
    """What requests can be about and what they can show: names by field, and credentials."""

    def __init__(self) -> None:
        self.names: defaultdict[str, deque[str]] = defaultdict(lambda: deque(maxlen=NAMES_KEPT))
        self.shown: deque[str] = deque(maxlen=NAMES_KEPT)
        self.strong: list[str] = []

    def learn(self, answer: Any) -> None:
        """Remember the names and the credentials in an answer."""
        for name, value in answer.items() if isinstance(answer, dict) else ():
            if isinstance(value, dict):
                self.learn(value)
            elif isinstance(value, str) and name in {"token", "key"}:
                self.shown.append(value)
            elif isinstance(value, str) and (name.endswith("_id") or name == "next_cursor"):
                self.names[name].append(value)


@dataclass
class Draft:
    """A request while it is made: `body` is a value, `raw` the bytes instead of it.

    `asked` are the parameters that its query can have.
    """

    method: str
    path: bytes
    shown: str | None
    asked: list[str] = field(default_factory=list)
    query: list[tuple[str, str]] = field(default_factory=list)
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: Any = None
    raw: bytes | None = None
    told: str = "authorization"
    pieces: int = 1
    stalls: bool = False
    leaves: int | None = None

    def bytes(self) -> bytes:
        """Return the body as it is now."""
        if self.raw is not None:
            return self.raw
        return b"" if self.body is None else msgspec.json.encode(self.body)

    def sent(self) -> Sent:
        """Return the request."""
        headers = [*self.headers]
        if self.shown is not None:
            scheme = "Bearer " if self.told == "authorization" else ""
            value = (scheme + self.shown).encode("latin-1", "replace")
            headers.append((self.told.encode(), value))
        names = {name for name, _ in headers}
        if b"host" not in names:
            headers.append((b"host", b"localhost"))
        body = self.bytes()
        size = -(-len(body) // self.pieces) or 1
        return Sent(
            self.method, self.path, "&".join(f"{n}={v}" for n, v in self.query).encode(), headers,
            [body[at : at + size] for at in range(0, len(body), size)] or [b""],
            self.stalls, self.leaves,
        )  # fmt: skip


Twist: TypeAlias = Callable[["Mischief", Draft], None]


class Mischief:
    """Makes requests, half of them with `base` before the path; the randomness decides."""

    def __init__(self, rnd: Random, document: dict[str, Any], known: Known, base: str = "") -> None:
        self.rnd = rnd
        self._base = base
        self.known = known
        self._schemas = document["components"]["schemas"]
        self._operations = [
            (path, method.upper(), operation)
            for path, methods in document["paths"].items()
            for method, operation in methods.items()
        ]
        self._weights = [_weight(operation) for _, _, operation in self._operations]
        self._twists = list(TWISTS)
        self._rates = [TWISTS[name][1] for name in self._twists]

    def request(self) -> tuple[Sent, list[str]]:
        """Return a request, and the names of what is malformed about it."""
        rnd = self.rnd
        draft = self.valid()
        count = rnd.choice((0, 1, 1, 1, 1, 2, 2, 3))
        twists = rnd.choices(self._twists, self._rates, k=count)
        for name in twists:
            TWISTS[name][0](self, draft)
        return draft.sent(), twists or ["valid"]

    def valid(self) -> Draft:
        """Return a request as the document has it, often about things that are there."""
        rnd = self.rnd
        path, method, operation = rnd.choices(self._operations, self._weights)[0]
        path = re.sub(r"{(\w+)}", lambda found: quote(self._name(found[1]), safe=":"), path)
        pool = self.known.strong if rnd.random() < 0.6 else self.known.shown
        path = rnd.choice((path, self._base + path))
        draft = Draft(method, path.encode(), rnd.choice(pool) if pool else None)
        for one in operation.get("parameters", ()):
            if one["in"] == "query":
                draft.asked.append(one["name"])
            if one["in"] == "path" or rnd.random() < 0.7:
                continue
            text = str(self._likely(one["name"]) or rnd.choice(("1", "x")))
            if one["in"] == "query":
                draft.query.append((one["name"], quote(text)))
            else:
                draft.headers.append((one["name"].lower().encode(), text.encode()))
        if "requestBody" in operation:
            draft.body = self.sample(
                operation["requestBody"]["content"]["application/json"]["schema"]
            )
            draft.headers.append((b"content-type", b"application/json"))
        return draft

    def _name(self, field: str) -> str:
        pool = self.known.names[field.removeprefix("parent_")]
        return self.rnd.choice(pool) if pool and self.rnd.random() < 0.8 else "x1"

    def _likely(self, field: str) -> Any:
        if field.endswith("_id") and field not in LIKELY:
            return self._name(field)
        return deepcopy(self.rnd.choice(LIKELY[field])) if field in LIKELY else None

    def sample(self, schema: dict[str, Any], name: str = "") -> Any:
        """Return a value that a schema allows."""
        rnd = self.rnd
        if "$ref" in schema:
            schema = self._schemas[schema["$ref"].rpartition("/")[2]]
        likely = self._likely(name)
        if likely is not None and rnd.random() < 0.9:
            return likely
        if "anyOf" in schema:
            return self.sample(rnd.choice(schema["anyOf"]), name)
        return self._of_type(schema)

    def _of_type(self, schema: dict[str, Any]) -> Any:
        rnd = self.rnd
        match schema.get("type"):
            case "object":
                return self._object(schema)
            case "array":
                return [self.sample(schema.get("items", {})) for _ in range(rnd.randrange(3))]
            case "integer":
                return rnd.choice((1, 5, 1000, 60_000))
            case "boolean":
                return rnd.random() < 0.2
            case "null":
                return None
            case _:
                return rnd.choice(TEXTS)

    def _object(self, schema: dict[str, Any]) -> dict[str, Any]:
        properties, required = schema.get("properties", {}), schema.get("required", ())
        says = {"role": "speaker"} if "content" in properties else {}
        return {
            name: self.sample(part, says.get(name, name))
            for name, part in properties.items()
            if name in required or self.rnd.random() < 0.3
        }


def _weight(operation: dict[str, Any]) -> float:
    """Return how often an operation is asked: one with many ends often, what is slow seldom."""
    kinds = operation["responses"].get("200", {}).get("content", {})
    made = any(kind.startswith("text/") and kind != "text/event-stream" for kind in kinds)
    if made or operation["operationId"] == "openapi":
        return 0.02
    return 3.0 if "202" in operation["responses"] else 1.0


# ---------------------------------------------------------------- twists


def _method(at: Mischief, draft: Draft) -> None:
    draft.method = at.rnd.choice(METHODS)


def _odd_path(at: Mischief, draft: Draft) -> None:
    spot = at.rnd.randrange(1, len(draft.path) + 1)
    draft.path = draft.path[:spot] + at.rnd.choice(PIECES) + draft.path[spot:]


def _path_end(at: Mischief, draft: Draft) -> None:
    draft.path += at.rnd.choice(PIECES)


def _path_cut(at: Mischief, draft: Draft) -> None:
    draft.path = draft.path[: at.rnd.randrange(1, len(draft.path) + 1)]


def _long_path(at: Mischief, draft: Draft) -> None:
    draft.path += at.rnd.choice((b"a", b"/", b"%41", b"%ff")) * at.rnd.choice((200, 3000, 20_000))


def _odd_query(at: Mischief, draft: Draft) -> None:
    odd = at.rnd.choice((at.rnd.choice(NUMBERS), at.rnd.choice(PIECES).decode()))
    draft.query.insert(0, (at.rnd.choice(draft.asked or ["limit"]), odd))


def _repeated_query(at: Mischief, draft: Draft) -> None:
    draft.query = (draft.query or [("limit", "1")]) * at.rnd.choice((2, 2, 300))


def _raw_query(at: Mischief, draft: Draft) -> None:
    noise = bytes(at.rnd.choices(range(33, 127), k=at.rnd.randrange(60))).decode()
    draft.query.append((noise, at.rnd.choice(("", "=", "&&==;", "%", "%ff%fe", "a" * 9000))))


def _token_in_query(at: Mischief, draft: Draft) -> None:
    draft.query.append(("token", quote(at.rnd.choice((*at.known.shown, *CREDENTIALS)))))


def _odd_header(at: Mischief, draft: Draft) -> None:
    draft.headers.append((at.rnd.choice(NAMES), at.rnd.choice(TOLD)))


def _twice_header(at: Mischief, draft: Draft) -> None:
    name = at.rnd.choice([name for name, _ in draft.headers] or [b"host"])
    draft.headers += [(name, at.rnd.choice(TOLD)), (name, at.rnd.choice(TOLD))]


def _huge_header(at: Mischief, draft: Draft) -> None:
    draft.headers.append((at.rnd.choice(NAMES), at.rnd.choice((b"a", b",", b"9")) * 60_000))


def _many_headers(at: Mischief, draft: Draft) -> None:
    draft.headers += [(b"x-%d" % n, at.rnd.choice(TOLD)) for n in range(200)]


def _content_type(at: Mischief, draft: Draft) -> None:
    kept = [header for header in draft.headers if header[0] != b"content-type"]
    draft.headers = [*kept, (b"content-type", at.rnd.choice(TYPES))]


def _announced(at: Mischief, draft: Draft) -> None:
    """Announce a body that is not sent; httptools lets nothing but numbers through."""
    size = at.rnd.choice((b"0", b"17", b"1048577", b"18446744073709551615"))
    draft.headers += [(b"expect", b"100-continue"), (b"content-length", size)]


def _no_credential(_: Mischief, draft: Draft) -> None:
    draft.shown = None


def _odd_credential(at: Mischief, draft: Draft) -> None:
    draft.shown = at.rnd.choice(CREDENTIALS)


def _cut_credential(at: Mischief, draft: Draft) -> None:
    if draft.shown:
        draft.shown = draft.shown[: at.rnd.randrange(len(draft.shown))]


def _flipped_credential(at: Mischief, draft: Draft) -> None:
    if draft.shown:
        spot = at.rnd.randrange(len(draft.shown))
        flipped = chr(ord(draft.shown[spot]) ^ 1 << at.rnd.randrange(7))
        draft.shown = draft.shown[:spot] + flipped + draft.shown[spot + 1 :]


def _two_credentials(at: Mischief, draft: Draft) -> None:
    name = at.rnd.choice((b"authorization", b"x-api-key", b"x-run-token"))
    other = at.rnd.choice((*at.known.shown, *CREDENTIALS)).encode("latin-1", "replace")
    draft.headers.append((name, b"Bearer " * (name == b"authorization") + other))


def _other_scheme(at: Mischief, draft: Draft) -> None:
    draft.shown = None
    odd = (b"Basic YTpi", b"Bearer", b"bearer", b"Bearer  ", b"Digest x", b"\xff", b"Bearer\tx")
    draft.headers.append((b"authorization", at.rnd.choice(odd)))


def _other_header(at: Mischief, draft: Draft) -> None:
    draft.told = at.rnd.choice(("x-api-key", "x-run-token"))


def _odd(kind: str) -> Twist:
    def twist(at: Mischief, draft: Draft) -> None:
        value = deepcopy(at.rnd.choice(ODD[kind]))
        spots = list(places(draft.body))
        if spots and draft.raw is None:
            holder, key = at.rnd.choice(spots)
            holder[key] = value
        else:
            draft.raw = msgspec.json.encode(value)

    return twist


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Return every spot within a value where another one can be put."""
    if isinstance(value, dict | list):
        for key, part in [*(value.items() if isinstance(value, dict) else enumerate(value))]:
            yield value, key
            yield from places(part)


def _missing_field(at: Mischief, draft: Draft) -> None:
    if isinstance(draft.body, dict) and draft.body:
        del draft.body[at.rnd.choice([*draft.body])]


def _unknown_field(at: Mischief, draft: Draft) -> None:
    holders = [draft.body, *(holder[key] for holder, key in places(draft.body))]
    for holder in holders:
        if isinstance(holder, dict):
            holder[at.rnd.choice(("", "x", "__proto__", "run_id", "\0"))] = at.rnd.choice(TEXTS)


def _twice_field(at: Mischief, draft: Draft) -> None:
    raw = draft.bytes()
    if isinstance(draft.body, dict) and draft.body and raw.startswith(b"{"):
        name = msgspec.json.encode(at.rnd.choice([*draft.body]))
        draft.raw = raw[:-1] + b"," + name + b":" + at.rnd.choice((b"null}", b'"x"}', b"1}"))


def _array_for_object(_: Mischief, draft: Draft) -> None:
    body = draft.body
    draft.raw = msgspec.json.encode([*body.values()] if isinstance(body, dict) else [body])


def _odd_body(at: Mischief, draft: Draft) -> None:
    draft.raw = at.rnd.choice(BODIES)


def _cut_body(at: Mischief, draft: Draft) -> None:
    raw = draft.bytes()
    draft.raw = raw[: at.rnd.randrange(len(raw) + 1)]


def _flipped_body(at: Mischief, draft: Draft) -> None:
    raw = bytearray(draft.bytes() or b"{}")
    for _ in range(at.rnd.choice((1, 1, 2, 8))):
        raw[at.rnd.randrange(len(raw))] ^= 1 << at.rnd.randrange(8)
    draft.raw = bytes(raw)


def _noise_in_body(at: Mischief, draft: Draft) -> None:
    raw, noise = draft.bytes(), at.rnd.randbytes(at.rnd.choice((1, 4, 100)))
    spot = at.rnd.randrange(len(raw) + 1)
    draft.raw = raw[:spot] + noise + raw[spot:]


def _too_large(at: Mischief, draft: Draft) -> None:
    draft.raw = draft.bytes() + at.rnd.choice((b" ", b"x", b"[")) * (MIB + 1)


def _in_pieces(at: Mischief, draft: Draft) -> None:
    draft.pieces = at.rnd.choice((2, 3, 50))


def _stalls(_: Mischief, draft: Draft) -> None:
    draft.stalls = True


def _leaves(at: Mischief, draft: Draft) -> None:
    draft.leaves = at.rnd.randrange(6)


TWISTS: Final[dict[str, tuple[Twist, float]]] = {
    "method": (_method, 1), "odd_path": (_odd_path, 1), "path_end": (_path_end, 1),
    "path_cut": (_path_cut, 0.5), "long_path": (_long_path, 0.2), "odd_query": (_odd_query, 2),
    "repeated_query": (_repeated_query, 0.5), "raw_query": (_raw_query, 0.5),
    "token_in_query": (_token_in_query, 0.5), "odd_header": (_odd_header, 2),
    "twice_header": (_twice_header, 0.5), "huge_header": (_huge_header, 0.2),
    "many_headers": (_many_headers, 0.2), "content_type": (_content_type, 0.5),
    "no_credential": (_no_credential, 0.5), "odd_credential": (_odd_credential, 0.5),
    "cut_credential": (_cut_credential, 0.5), "flipped_credential": (_flipped_credential, 0.5),
    "two_credentials": (_two_credentials, 0.5), "other_scheme": (_other_scheme, 0.5),
    "other_header": (_other_header, 0.5), "missing_field": (_missing_field, 1),
    "unknown_field": (_unknown_field, 0.5), "twice_field": (_twice_field, 0.5),
    "array_for_object": (_array_for_object, 0.5), "odd_body": (_odd_body, 1),
    "cut_body": (_cut_body, 1), "flipped_body": (_flipped_body, 2),
    "noise_in_body": (_noise_in_body, 1), "too_large": (_too_large, 0.05),
    "announced": (_announced, 0.2), "in_pieces": (_in_pieces, 0.5), "stalls": (_stalls, 0.05),
    "leaves": (_leaves, 0.3),
} | {kind: (_odd(kind), 0.2 if kind == "deep" else 1) for kind in ODD}  # fmt: skip
"""What can be malformed, and how often it is."""
