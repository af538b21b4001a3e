"""What callers show: keys (`ok_<env>_<id>_<secret>`) and signed tokens, as texts and back.

A key's secret has 256 random bits, so its plain SHA-256 is as safe as a slow hash would be. A
token says all by itself: `<kind>_<claims>.<signature>`, both base64url, and is kept nowhere.
"""

import hmac
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from hashlib import sha256
from typing import Final, TypeAlias

import msgspec

from orchestrator.core import ids
from orchestrator.core.secret import Secret

SECRET_BYTES: Final = 32
"""Random bytes of a key's secret."""
ID_NOISE: Final = 16
TOKEN_MAX: Final = 2048
"""Characters that a token of ours has at most."""
ENVIRONMENT: Final = re.compile(r"[a-z0-9]{1,16}\Z")
"""What stands in a key to tell people which of their systems it is for."""
_KEY: Final = re.compile(r"ok_[a-z0-9]{1,16}_([0-9a-hjkmnp-tv-z]{26})_([0-9a-f]{64})\Z")
_TOKEN: Final = re.compile(r"(ort|ost)_([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]{43})\Z")
KEY_PREFIX: Final = "ok_"
TOKEN_PREFIXES: Final = ("ort_", "ost_")


def mint_key(environment: str, ts: int, noise: bytes, secret: bytes) -> tuple[str, Secret, bytes]:
    """Return a new key's id, its text and the digest of its secret, from ts, noise and secret."""
    key_id = ids.stamp(ts) + ids.letters(noise[:ID_NOISE])
    text = f"ok_{environment}_{key_id}_{secret.hex()}"
    return key_id, Secret(text), digest(secret.hex())


def parse_key(text: str) -> tuple[str, str] | None:
    """Return the id and the secret of a key's text, None for what is no key of ours."""
    found = _KEY.match(text)
    return (found[1], found[2]) if found else None


def digest(secret: str) -> bytes:
    """Return what is kept of a key's secret."""
    return sha256(secret.encode()).digest()


def is_secret_of(secret: str, kept: bytes) -> bool:
    """Return whether `kept` is the digest of a secret; takes the same time either way."""
    return hmac.compare_digest(digest(secret), kept)


class RunClaims(msgspec.Struct, frozen=True, tag="run", omit_defaults=True):
    """What the token of an attempt says; times are milliseconds UTC."""

    tenant: str
    run_id: str
    attempt: int
    epoch: int
    scopes: list[str]
    expires_at: int


class SessionClaims(msgspec.Struct, frozen=True, tag="session", omit_defaults=True):
    """What a session's token says; `by` is the key that made it, or `maker` what else did."""

    tenant: str
    session_id: str
    scopes: list[str]
    expires_at: int
    user_id: str | None = None
    by: str | None = None
    maker: str | None = None


Claims: TypeAlias = RunClaims | SessionClaims
_PREFIXES: Final[dict[type[Claims], str]] = {RunClaims: "ort_", SessionClaims: "ost_"}
_DECODER: Final = msgspec.json.Decoder(Claims)


def write_token(claims: Claims, sign: Callable[[bytes], bytes]) -> Secret:
    """Return claims as a signed token."""
    body = _PREFIXES[type(claims)] + _base64(msgspec.json.encode(claims))
    return Secret(f"{body}.{_base64(sign(body.encode()))}")


def read_token(text: str, is_signed: Callable[[bytes, bytes], bool]) -> Claims | None:
    """Return the claims of a token that we have signed, None for any other text."""
    found = _TOKEN.match(text) if len(text) <= TOKEN_MAX else None
    if found is None or not is_signed(text.rpartition(".")[0].encode(), _bytes(found[3])):
        return None
    try:
        claims = _DECODER.decode(_bytes(found[2]))
    except ValueError:
        return None
    return claims if text.startswith(_PREFIXES[type(claims)]) else None


def _base64(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))
