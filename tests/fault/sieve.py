"""Looks for planted secrets in what a server wrote and said, whatever form they have there."""

import json
import re
import tarfile
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from ..processes import Answer, request, stream

PIECE = 20
"""Characters that give a secret away: its beginning and its end are looked for."""
_DRAWN = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\s│]")


def forms(piece: str) -> Iterator[tuple[str, bytes]]:
    """Yield a text as it is, and in the forms that programs give it without being asked."""
    raw = piece.encode()
    yield from (("plain", text.encode()) for text in (piece, piece.upper(), piece.lower()))
    yield "JSON", json.dumps(piece)[1:-1].encode()
    yield from (("hex", text.encode()) for text in (raw.hex(), raw.hex().upper()))
    yield "URL", quote(piece, safe="").encode()
    yield from (
        ("URL", "".join(form % byte for byte in raw).encode()) for form in ("%%%02X", "%%%02x")
    )
    for shift in range(3):  # base64 takes three bytes at a time, and may begin with any of them
        whole = (shift + len(raw)) // 3 * 4
        for encode in (b64encode, urlsafe_b64encode):
            yield "base64", encode(bytes(shift) + raw)[4 if shift else 0 : whole]


@dataclass
class Sieve:
    """The secrets that were planted, by name, and what they are looked for in."""

    planted: dict[str, set[tuple[str, bytes]]] = field(default_factory=dict)
    looked_in: list[tuple[str, bytes]] = field(default_factory=list)

    def plant(self, name: str, secret: str) -> str:
        """Look for a secret from now on, and return it."""
        assert len(secret) >= PIECE, f"{name}: too short to be told from chance"
        wanted = {*forms(secret[:PIECE]), *forms(secret[-PIECE:])}
        self.planted[name] = self.planted.get(name, set()) | wanted
        return secret

    def key(self, name: str, text: str) -> str:
        """Look for the last part of a key or token, which alone is secret; return all of it."""
        self.plant(name, text.rpartition("." if "." in text else "_")[2])
        return text

    def look(self, where: str, data: bytes) -> None:
        """Keep what somebody may read."""
        self.looked_in.append((where, data))

    def terminal(self, where: str, data: bytes) -> None:
        """Keep what somebody may read on a terminal, also where colours and frames cut it up."""
        self.look(where, data)
        self.look(where, _DRAWN.sub("", data.decode("utf-8", "replace")).encode())

    def files(self, when: str, folder: Path) -> None:
        """Keep every file of a folder, of a bundle what is packed in it."""
        for file in sorted(folder.rglob("*")):
            if file.suffix == ".tgz":
                with tarfile.open(file) as bundle:
                    for member in bundle.getmembers():
                        part = bundle.extractfile(member)
                        self.look(f"{member.name} {when}", part.read() if part else b"")
            elif file.is_file():
                self.look(f"{file.name} {when}", file.read_bytes())

    def found(self) -> list[str]:
        """Return which secret is where, and in which forms."""
        seen: dict[str, set[str]] = {}
        for where, data in self.looked_in:
            for name, wanted in self.planted.items():
                for form, needle in wanted:
                    if needle in data:
                        seen.setdefault(f"{name}: in {where}, as", set()).add(form)
        return sorted(f"{what} {', '.join(sorted(forms))}" for what, forms in seen.items())


@dataclass
class Voice:
    """Speaks to a server and lets the sieve see each answer, headers and all."""

    url: str
    sieve: Sieve

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] = MappingProxyType({}),
        repeats: str = "",
    ) -> Answer:
        """Make a request; its answer may repeat one text, once."""
        answer = request(method, self.url + path, body, headers)
        rest = answer.body.replace(repeats.encode(), b"", 1) if repeats else answer.body
        self.sieve.look(f"the answer to {method} {path.partition('?')[0]}", _head(answer) + rest)
        return answer

    def given(self, name: str, path: str, body: Any, headers: Mapping[str, str]) -> dict[str, Any]:
        """Ask for a new key or token: the one answer that has it, and has it once."""
        answer = request("POST", self.url + path, body, headers)
        assert answer.status == 201, answer.body
        made: dict[str, Any] = answer.json()
        text = self.sieve.key(name, made.get("key") or made["token"])
        rest = answer.body.replace(text.encode(), b"", 1)
        self.sieve.look(f"the rest of the answer that gives {name}", _head(answer) + rest)
        return made

    def read(self, path: str, headers: Mapping[str, str] = MappingProxyType({})) -> bytes:
        """Read a stream to its end."""
        with stream(self.url + path, headers) as answer:
            head, data = str(answer.headers).encode(), answer.read()
        self.sieve.look(f"the stream {path.partition('?')[0]}", head + data)
        return data


def _head(answer: Answer) -> bytes:
    return "".join(f"{name}: {value}\n" for name, value in answer.headers.items()).encode()
