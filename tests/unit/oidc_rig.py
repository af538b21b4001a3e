"""A fake identity provider, a verifier of its tokens, and what the tests of both say of them."""

import base64
import json
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache, partial
from typing import Any

import pytest

from orchestrator.clients.fetch import fetch
from orchestrator.clients.http import HTTPClient
from orchestrator.core.errors import OrchestratorError, Unauthorized
from orchestrator.guards.oidc import OIDC, Fetch, Rules
from orchestrator.testing.fake_idp import FakeIdP, SigningKey
from orchestrator.testing.fake_world import FakeWorld
from orchestrator.testing.open_egress import OpenEgress

WANTED = {"aud": "orchestrator", "orchestrator_role": "viewer"}
MINUTE, DAY = 60_000, 86_400_000


class SetClock(FakeWorld):
    """A world whose wall clock can be set without any time passing."""

    wall = 0

    def now(self) -> int:
        return super().now() + self.wall


class Rig:
    """A provider, a verifier of its tokens, and a key."""

    def __init__(self, idp: FakeIdP, world: SetClock, fetch: Fetch) -> None:
        self.idp, self.world, self.fetch = idp, world, fetch
        self.key = idp.add_key()
        self.oidc = self.verifier()

    def rules(self, **changes: Any) -> Rules:
        usual = {"issuer": self.idp.issuer, "audiences": ("other", "orchestrator")}
        return Rules(**{**usual, **changes})

    def verifier(self, **rules: Any) -> OIDC:
        return OIDC(self.rules(**rules), self.fetch, self.world)

    def token(self, key: SigningKey | None = None, /, **claims: Any) -> str:
        return self.idp.token(key or self.key, **{**WANTED, **claims})

    def wait(self, ms: int) -> None:
        self.world.time += ms

    async def lets_in(self, token: str) -> bool:
        try:
            await self.oidc.verify(token)
        except Unauthorized:
            return False
        return True

    async def refusal(self, token: str, kind: type[OrchestratorError] = Unauthorized) -> str:
        """Return the sentence of a refusal, which must not hold what was refused."""
        with pytest.raises(kind) as caught:
            await self.oidc.verify(token)
        assert_says_nothing_of(token, caught.value)
        return caught.value.message


def assert_says_nothing_of(token: str, error: OrchestratorError) -> None:
    said = "".join(traceback.format_exception(error)) + repr(error) + repr(error.details)
    assert not [part for part in token.split(".") if len(part) > 8 and part in said]


@asynccontextmanager
async def open_rig() -> AsyncIterator[Rig]:
    """Start a provider, with a client that really dials it."""
    world = SetClock()
    async with FakeIdP(world) as idp, HTTPClient(world, OpenEgress()) as http:
        yield Rig(idp, world, partial(fetch, http))


@cache
def key_of(algorithm: str) -> SigningKey:
    return SigningKey(algorithm, algorithm)


def returning(body: bytes) -> Fetch:
    """Return what fetches the same from everywhere, however much it is."""

    async def fetch(_: str) -> bytes:
        return body

    return fetch


def b64(data: bytes | dict[str, Any]) -> str:
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")
