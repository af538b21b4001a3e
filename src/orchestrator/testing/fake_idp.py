"""An identity provider whose every answer the test decides: discovery, keys and tokens on loopback.

async with FakeIdP(world) as idp:
    key = idp.add_key("ES256")
    token = idp.token(key, aud="orchestrator", orchestrator_role="viewer")
    ... verify it by idp.issuer ...
"""

import asyncio
import json
from collections import Counter
from types import TracebackType
from typing import Any, Final, Self, TypeAlias

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from orchestrator.ports import World
from orchestrator.testing.fake_agent import FakeAgent, Peer, head

DISCOVERY: Final = "/.well-known/openid-configuration"
KEYS: Final = "/keys"

Private: TypeAlias = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

_CURVES: Final[dict[str, ec.EllipticCurve]] = {
    "ES256": ec.SECP256R1(),
    "ES384": ec.SECP384R1(),
    "ES512": ec.SECP521R1(),
}
_TTL_S: Final = 3600


class SigningKey:
    """A key of the provider, made when it is asked for."""

    def __init__(self, algorithm: str = "ES256", kid: str | None = "key-1") -> None:
        self.algorithm = algorithm
        self.kid = kid
        self.private = _made_for(algorithm)

    def jwk(self, **members: Any) -> dict[str, Any]:
        """Return the public half as a JWK; `members` replace what it says, None leaves it out."""
        public = jwt.get_algorithm_by_name(self.algorithm).to_jwk(
            self.private.public_key(), as_dict=True
        )
        said = {"kid": self.kid, "alg": self.algorithm, "use": "sig", "key_ops": None}
        merged = {**public, **said, **members}
        return {name: value for name, value in merged.items() if value is not None}

    def sign(self, claims: Any, **header: Any) -> str:
        """Return a token of `claims` (bytes are taken as they are), with more in its header."""
        payload = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
        named = {"kid": self.kid, **header}
        kept = {name: value for name, value in named.items() if value is not None}
        return jwt.PyJWS().encode(payload, self.private, self.algorithm, headers=kept)


class FakeIdP:
    """Listens on a free port of 127.0.0.1 and answers what `documents` says, by path.

    Until a test puts bytes of its own there, DISCOVERY names the issuer and KEYS lists `keys`.
    While `away` is set it hangs up on every question; after `hold` the answers wait for `release`.
    `asked` counts the questions by path, those it hung up on, too.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._agent = FakeAgent(self._serve)
        self._open = asyncio.Event()
        self._open.set()
        self.keys: list[Any] = []
        self.documents: dict[str, bytes] = {}
        self.away = False
        self.asked: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        await self._agent.__aenter__()
        self.issuer = self._agent.url
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.release()
        await self._agent.__aexit__(kind, error, tb)

    def add_key(self, algorithm: str = "ES256", kid: str | None = "key-1") -> SigningKey:
        """Make a key and publish it."""
        key = SigningKey(algorithm, kid)
        self.keys.append(key.jwk())
        return key

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Return the claims of a token that is valid for an hour; None leaves one out."""
        now = self._world.now() // 1000
        usual = {"iss": self.issuer, "sub": "person-1", "iat": now, "exp": now + _TTL_S}
        return {name: value for name, value in {**usual, **changes}.items() if value is not None}

    def token(self, key: SigningKey, **changes: Any) -> str:
        """Return such a token, signed."""
        return key.sign(self.claims(**changes))

    def hold(self) -> None:
        """Let every answer wait from now on."""
        self._open.clear()

    def release(self) -> None:
        """Answer who waits, and everybody after."""
        self._open.set()

    def answer(self, path: str, value: Any) -> None:
        """Answer `path` with a value as JSON from now on."""
        self.documents[path] = json.dumps(value).encode()

    async def _serve(self, peer: Peer) -> None:
        while True:
            request = await peer.request()
            self.asked[request.path] += 1
            await self._open.wait()
            if self.away:
                return
            known = self._usual() | self.documents
            body = known.get(request.path, b"")
            size = (("Content-Length", str(len(body))),)
            status = 200 if request.path in known else 404
            await peer.send(head(status, "application/json", size) + body)

    def _usual(self) -> dict[str, bytes]:
        found = {"issuer": self.issuer, "jwks_uri": self.issuer + KEYS}
        listed = {"keys": self.keys}
        return {DISCOVERY: json.dumps(found).encode(), KEYS: json.dumps(listed).encode()}


def _made_for(algorithm: str) -> Private:
    if algorithm in _CURVES:
        return ec.generate_private_key(_CURVES[algorithm])
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)
