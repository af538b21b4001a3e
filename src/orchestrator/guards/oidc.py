"""Who may pass on the word of an identity provider: JWT bearer tokens, and the keys that sign them.

The rules are those of OpenID Connect Core and Discovery, RFC 7515 to 7519, and RFC 8725, which says
what went wrong elsewhere.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from typing import Any, Final, NamedTuple, TypeAlias
from urllib.parse import urlsplit

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.algorithms import AllowedPublicKeys
from msgspec import UNSET

from orchestrator.core import jsontext
from orchestrator.core.access import ROLES
from orchestrator.core.errors import (
    Forbidden,
    OrchestratorError,
    SettingsInvalid,
    Unauthorized,
    Unavailable,
)
from orchestrator.core.values import NAME, NUMBER_MAX
from orchestrator.ports import Person, World
from orchestrator.telemetry import get_logger

log = get_logger(__name__)

Fetch: TypeAlias = Callable[[str], Awaitable[bytes]]
"""GETs a URL and returns the body of a 200, read up to BODY_BYTES; raises Unavailable otherwise."""

TOKEN_BYTES: Final = 16 * 1024
BODY_BYTES: Final = 256 * 1024
KEYS_MAX: Final = 64

_ALGORITHMS: Final[dict[str, tuple[str, str | None]]] = {
    "RS256": ("RSA", None),
    "RS384": ("RSA", None),
    "RS512": ("RSA", None),
    "PS256": ("RSA", None),
    "PS384": ("RSA", None),
    "PS512": ("RSA", None),
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
    "EdDSA": ("OKP", "Ed25519"),
}
"""What may sign, with the `kty` and `crv` of its keys; nothing here has a secret that we share."""
_COMPACT: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")
"""The one way to write a token (RFC 7515 §7.1): PyJWT would let padding stand."""
_TYPES: Final = frozenset({"jwt", "at+jwt", "application/jwt", "application/at+jwt"})
_RSA_BITS: Final = range(2048, 8193)
_SUBJECT_MAX: Final = 256
_LEEWAY_MAX_S: Final = 600
_SECONDS_MAX: Final = NUMBER_MAX // 2000  # so that milliseconds, with leeway, are numbers of ours

_KEPT_S: Final = 600.0
_STALE_S: Final = 86_400.0
_PAUSE_S, _FIRST_PAUSE_S = 30.0, 5.0
"""Least time from one question to the provider to the next; the second until it has answered."""
_PATIENCE_S: Final = 10.0

_JWS: Final = jwt.PyJWS(list(_ALGORITHMS))


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """Whose tokens are taken, and which claims say who somebody is.

    A token's `iss` is exactly `issuer` and its `aud` names one of `audiences`. Without `jwks_url`
    the keys are found by discovery at the issuer. A claim is a name or a path of names
    (`realm_access.roles`). `leeway_s` is how far two clocks may be apart.
    """

    issuer: str
    audiences: tuple[str, ...]
    jwks_url: str | None = None
    role_claim: str = "orchestrator_role"
    tenant_claim: str = "orchestrator_tenant"
    person_claim: str = "sub"
    leeway_s: int = 60


class OIDC:
    """The Identity of one issuer's bearer tokens; rules that cannot be raise SettingsInvalid."""

    def __init__(self, rules: Rules, fetch: Fetch, world: World) -> None:
        _check(rules)
        self._rules = rules
        self._world = world
        self._keys = _Keys(rules, fetch, world)

    async def verify(self, token: str) -> Person:
        """Return who the token speaks for; it is refused from `expires_at` on, leeway included.

        Raises Unauthorized for a token that proves nothing, Forbidden for a person without a role
        or with an impossible tenant, Unavailable while the keys cannot be had.
        """
        read = _read(token)
        # What it says is judged first, so that only a token meant for us can make us ask the
        # provider; it is believed once the signature is right.
        expires_at = self._judge(read.claims)
        keys = await self._keys.fitting(read.algorithm, read.kid)
        if read.kid is None and len(keys) > 1:
            raise Unauthorized("the token has no kid and the identity provider has several keys")
        if not any(_signed(token, read.algorithm, key) for key in keys):
            raise Unauthorized("the token's signature is not that of the identity provider's key")
        return self._person(read.claims, expires_at)

    def _judge(self, claims: dict[str, Any]) -> int:
        """Check whom the token is from, whom it is for and when it is valid; return its end."""
        rules, now = self._rules, self._world.now()
        if claims.get("iss") != rules.issuer:
            raise Unauthorized(f"the token's iss is not {rules.issuer}")
        named = claims.get("aud")
        audiences = named if isinstance(named, list) else [named]
        if not all(isinstance(one, str) for one in audiences):
            raise Unauthorized("the token's aud must be a string or a list of strings")
        if not any(one in audiences for one in rules.audiences):
            raise Unauthorized(f"the token's aud has none of: {', '.join(rules.audiences)}")
        leeway, end = rules.leeway_s * 1000, _time(claims, "exp")
        if end is None:
            raise Unauthorized("the token has no exp; only tokens that expire are taken")
        if now >= end + leeway:
            raise Unauthorized("the token has expired; sign in again")
        for claim in ("nbf", "iat"):
            if (_time(claims, claim) or 0) > now + leeway:
                raise Unauthorized(
                    f"the token is not valid yet ({claim}); compare the clocks of both machines"
                )
        return end + leeway

    def _person(self, claims: dict[str, Any], expires_at: int) -> Person:
        rules = self._rules
        subject, tenant = _claim(claims, rules.person_claim), _claim(claims, rules.tenant_claim)
        if not isinstance(subject, str) or not _is_subject(subject):
            raise Unauthorized(
                f"the token's {rules.person_claim} must be 1 to {_SUBJECT_MAX} printable characters"
            )
        # Many providers let people write any address into their profile.
        if rules.person_claim == "email" and claims.get("email_verified") is not True:
            raise Unauthorized(
                "the token's email counts only beside email_verified: true; "
                "let the identity provider send it, or name people by sub"
            )
        if tenant is UNSET:
            tenant = "default"
        elif not isinstance(tenant, str) or not NAME.match(tenant):
            raise Forbidden(
                f"the token's {rules.tenant_claim} must be 1 to 128 characters of A-Z a-z 0-9 . _ -"
            )
        return Person(subject, tenant, _role(claims, rules.role_claim), expires_at)


class _Token(NamedTuple):
    """What a token says, before anything of it is believed."""

    algorithm: str
    kid: str | None
    claims: dict[str, Any]


class _Key(NamedTuple):
    """One public key of the provider, with the algorithms it may be used for."""

    kid: str | None
    algorithms: frozenset[str]
    public: AllowedPublicKeys


class _JWK(msgspec.Struct, frozen=True):
    """The members of a JWK that say what it is for (RFC 7517 §4)."""

    kty: str
    kid: str | None = None
    alg: str | None = None
    use: str | None = None
    key_ops: list[str] | None = None
    crv: str | None = None


class _KeySet(msgspec.Struct, frozen=True):
    keys: list[Any]


class _Discovered(msgspec.Struct, frozen=True):
    issuer: str
    jwks_uri: str


class _Keys:
    """The provider's keys as last heard, and the manners with which it is asked for them.

    Ages are measured on the monotonic clock, so a clock that is set makes no key older or newer.
    """

    def __init__(self, rules: Rules, fetch: Fetch, world: World) -> None:
        self._rules = rules
        self._fetch = fetch
        self._world = world
        self._known: tuple[_Key, ...] = ()
        self._heard_at: float | None = None
        self._asked_at: float | None = None
        self._failed = False
        self._asking = asyncio.Lock()

    async def fitting(self, algorithm: str, kid: str | None) -> list[_Key]:
        """Return the keys that may have signed; raises Unauthorized, or Unavailable.

        Whoever needs a key that is not there waits for the one question that is on its way; whoever
        has an old one goes on with it.
        """
        found = self._matching(algorithm, kid)
        if not found or (self._older(_KEPT_S) and not self._asking.locked()):
            async with self._asking:
                if self._may_ask():
                    await self._ask()
            found = self._matching(algorithm, kid)
        if found:
            return found
        if self._failed:
            raise Unavailable(
                "the keys of the identity provider cannot be had, so no token can be verified; "
                "try again later (the server's log says why)"
            )
        raise Unauthorized(
            "the identity provider has no key with the token's kid and alg; if the key is new, "
            f"try again in {_PAUSE_S:.0f} s"
        )

    def _matching(self, algorithm: str, kid: str | None) -> list[_Key]:
        if self._older(_STALE_S):
            return []
        return [
            key
            for key in self._known
            if algorithm in key.algorithms and (kid is None or kid == key.kid)
        ]

    def _older(self, seconds: float) -> bool:
        at = self._heard_at
        return at is None or self._world.monotonic() - at >= seconds

    def _may_ask(self) -> bool:
        pause = _FIRST_PAUSE_S if self._heard_at is None else _PAUSE_S
        return self._asked_at is None or self._world.monotonic() - self._asked_at >= pause

    async def _ask(self) -> None:
        """Ask the provider. Why it failed is for the operator, so it is said in the log alone."""
        # Noted beforehand: a question that is given up, because its caller is, counts as well.
        self._asked_at, self._failed = self._world.monotonic(), True
        try:
            async with asyncio.timeout(_PATIENCE_S):
                self._known = await self._hear()
        except TimeoutError:
            self._complain(f"no answer within {_PATIENCE_S:.0f} s")
        except OrchestratorError as error:
            self._complain(error.message)
        else:
            self._heard_at, self._failed = self._world.monotonic(), False

    def _complain(self, why: str) -> None:
        log.warning(
            "oidc_keys_missed", issuer=self._rules.issuer, error=why, known=len(self._known)
        )

    async def _hear(self) -> tuple[_Key, ...]:
        listed = await self._get(self._rules.jwks_url or await self._discover(), _KeySet)
        if len(listed.keys) > KEYS_MAX:
            raise Unavailable(f"it lists {len(listed.keys)} keys, and {KEYS_MAX} are taken at most")
        return tuple(key for jwk in listed.keys if (key := _key(jwk)) is not None)

    async def _discover(self) -> str:
        issuer = self._rules.issuer
        found = await self._get(
            issuer.rstrip("/") + "/.well-known/openid-configuration", _Discovered
        )
        if found.issuer != issuer:
            raise Unavailable("the issuer in its discovery document is another one")
        if not _is_safe(found.jwks_uri):
            raise Unavailable("its jwks_uri does not begin with https://")
        return found.jwks_uri

    async def _get(self, url: str, kind: type[jsontext.T]) -> jsontext.T:
        body = await self._fetch(url)
        if len(body) > BODY_BYTES:
            raise Unavailable(f"{url} answers more than {BODY_BYTES // 1024} KiB")
        try:
            return jsontext.decode(body, kind)
        except jsontext.MalformedJSON as error:
            raise Unavailable(f"{url} does not answer what it should ({error})") from error


def _check(rules: Rules) -> None:
    """Raise SettingsInvalid, with the rule that is broken."""
    parts = rules.issuer.partition("?")[0].partition("#")[0]
    if parts != rules.issuer or not _is_safe(rules.issuer):
        raise SettingsInvalid(
            f"OIDC_ISSUER must be an https:// URL without ? and #, not {rules.issuer[:200]!r}; "
            "http:// is taken for loopback hosts only"
        )
    if rules.jwks_url is not None and not _is_safe(rules.jwks_url):
        raise SettingsInvalid(
            f"OIDC_JWKS_URL must be an https:// URL, not {rules.jwks_url[:200]!r}; "
            "http:// is taken for loopback hosts only"
        )
    if not all(rules.audiences) or not rules.audiences:
        raise SettingsInvalid(
            "OIDC_AUDIENCE must say what the identity provider puts into the aud of tokens for "
            "this server, or any token of OIDC_ISSUER would open it"
        )
    if not 0 <= rules.leeway_s <= _LEEWAY_MAX_S:
        raise SettingsInvalid(f"the leeway of OIDC must be 0 to {_LEEWAY_MAX_S} seconds")


def _is_safe(url: str) -> bool:
    """Return whether what comes from a URL is what its host sent: TLS, or this machine itself."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        if parts.scheme == "https":
            return bool(host)
        return parts.scheme == "http" and (host == "localhost" or ip_address(host).is_loopback)
    except ValueError:
        return False


def _read(token: str) -> _Token:
    """Take a token apart; raises Unauthorized for what is none, or not of a kind that we take."""
    if len(token) > TOKEN_BYTES:
        raise Unauthorized(f"the token is longer than {TOKEN_BYTES} characters")
    if not _COMPACT.fullmatch(token):
        raise Unauthorized("the token is no JWT: three parts of base64url with dots between them")
    try:
        parts = _JWS.decode_complete(token, options={"verify_signature": False})
        claims = jsontext.decode(parts["payload"])
    except (jwt.PyJWTError, jsontext.MalformedJSON):
        raise Unauthorized("the token is no JWT: header or claims cannot be read") from None
    header, kind = parts["header"], parts["header"].get("typ", "JWT")
    algorithm = header.get("alg")
    if not isinstance(claims, dict):
        raise Unauthorized("the token is no JWT: its claims are no object")
    if not isinstance(algorithm, str) or algorithm not in _ALGORITHMS:
        raise Unauthorized(f"the token's alg must be one of {', '.join(_ALGORITHMS)}")
    # Logout and other tokens of the same issuer are signed alike and must not open anything.
    if not isinstance(kind, str) or kind.lower() not in _TYPES:
        raise Unauthorized("the token's typ must be JWT or at+jwt; this is a token of another kind")
    return _Token(algorithm, header.get("kid"), claims)


def _signed(token: str, algorithm: str, key: _Key) -> bool:
    try:
        _JWS.decode_complete(token, key.public, algorithms=[algorithm])
    except jwt.PyJWTError:
        return False
    return True


def _key(jwk: Any) -> _Key | None:
    """Return a key of a set, None for one that cannot sign our tokens (RFC 7517 §5)."""
    try:
        said = msgspec.convert(jwk, _JWK)
        algorithms = _algorithms(said)
        # A key whose private half has been published proves nothing.
        if not algorithms or "d" in jwk:
            return None
        public = jwt.PyJWK(jwk, min(algorithms)).key
    except (msgspec.ValidationError, jwt.PyJWTError, ValueError):
        return None
    if isinstance(public, RSAPublicKey) and public.key_size not in _RSA_BITS:
        return None
    return _Key(said.kid, algorithms, public)


def _algorithms(jwk: _JWK) -> frozenset[str]:
    if jwk.use not in {None, "sig"} or (jwk.key_ops is not None and "verify" not in jwk.key_ops):
        return frozenset()
    return frozenset(
        algorithm
        for algorithm, (kty, crv) in _ALGORITHMS.items()
        if jwk.kty == kty and crv in {None, jwk.crv} and jwk.alg in {None, algorithm}
    )


def _time(claims: dict[str, Any], claim: str) -> int | None:
    """Return a NumericDate in milliseconds, None without one; raises Unauthorized for others."""
    at = claims.get(claim)
    if at is None:
        return None
    if isinstance(at, bool) or not isinstance(at, int | float) or abs(at) > _SECONDS_MAX:
        raise Unauthorized(f"the token's {claim} must be a number of seconds since 1970")
    return int(at * 1000)


def _role(claims: dict[str, Any], path: str) -> str:
    """Return the most powerful role among those that a claim names."""
    named = _claim(claims, path)
    given = named if isinstance(named, list) else [named]
    for role in ROLES:  # the table begins with the most powerful
        if role in given:
            return role
    raise Forbidden(
        f"the token's {path} names no role of this server; "
        f"let the identity provider put one into it: {', '.join(ROLES)}"
    )


def _claim(claims: Any, path: str) -> Any:
    """Return what a path leads to, else UNSET; a name may hold dots itself, as URLs do."""
    if not isinstance(claims, dict):
        return UNSET
    if path in claims:
        return claims[path]
    for at in (at for at, character in enumerate(path) if character == "."):
        found = _claim(claims.get(path[:at]), path[at + 1 :])
        if found is not UNSET:
            return found
    return UNSET


def _is_subject(text: str) -> bool:
    """Return whether a name can be shown in a log line as what it is."""
    return 0 < len(text) <= _SUBJECT_MAX and text.isprintable() and text == text.strip()
