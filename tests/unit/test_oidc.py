"""Bearer tokens of an identity provider: whom they let in, and everything that must not."""

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.errors import Forbidden, Unauthorized, Unavailable
from orchestrator.guards import oidc
from orchestrator.guards.oidc import OIDC, Rules
from orchestrator.ports import Person
from orchestrator.testing.fake_idp import DISCOVERY, KEYS, SigningKey
from orchestrator.testing.fake_world import FakeWorld

from .oidc_rig import (
    DAY,
    MINUTE,
    WANTED,
    Rig,
    assert_says_nothing_of,
    b64,
    key_of,
    open_rig,
    returning,
)

ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512",
              "ES256", "ES384", "ES512", "EdDSA"]  # fmt: skip


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with open_rig() as opened:
        yield opened


# ---------------------------------------------------------------- who gets in


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_every_asymmetric_algorithm_is_taken(rig: Rig, algorithm: str) -> None:
    key = key_of(algorithm)
    rig.idp.keys.append(key.jwk())
    person = await rig.oidc.verify(rig.token(key))
    assert person == Person("person-1", "default", "viewer", rig.world.now() + 61 * MINUTE)
    signed = rig.token(key)
    for at in (0, len(signed.rpartition(".")[2]) // 2):
        head, _, signature = signed.rpartition(".")
        other = "A" if signature[at] != "A" else "B"
        broken = f"{head}.{signature[:at]}{other}{signature[at + 1 :]}"
        assert "signature" in await rig.refusal(broken)


@pytest.mark.parametrize(
    ("claim", "value", "role"),
    [
        ("orchestrator_role", "admin", "admin"),
        ("orchestrator_role", ["viewer", "agent", "approver", "owner"], "agent"),
        ("orchestrator_role", [None, 7, {}, ["admin"], "viewer"], "viewer"),
        ("realm_access.roles", {"realm_access": {"roles": ["approver", "x"]}}, "approver"),
        ("a.b.c", {"a": {"b.c": "ingress"}}, "ingress"),
        ("a.b.c", {"a": {"b": {"c": "viewer"}}, "a.b": {"d": "admin"}}, "viewer"),
        ("https://x.example/role", {"https://x.example/role": "admin"}, "admin"),
    ],
)
async def test_the_most_powerful_known_role_counts(
    rig: Rig, claim: str, value: Any, role: str
) -> None:
    claims = value if isinstance(value, dict) else {claim: value}
    token = rig.token(**{"orchestrator_role": None, **claims})
    assert (await rig.verifier(role_claim=claim).verify(token)).role == role


@pytest.mark.parametrize(
    "value", [None, "", "owner", "Admin", "admin viewer", [], ["x"], 1, True, {"admin": 1}]
)
async def test_without_a_known_role_nobody_may_do_anything(rig: Rig, value: Any) -> None:
    said = await rig.refusal(rig.token(orchestrator_role=value), Forbidden)
    assert "orchestrator_role" in said
    assert "admin, ingress, agent, approver, viewer" in said


@pytest.mark.parametrize("path", ["realm_access.roles", "roles.0", ".", "..", "orchestrator_role."])
async def test_a_path_that_leads_nowhere_gives_no_role(rig: Rig, path: str) -> None:
    rig.oidc = rig.verifier(role_claim=path)
    for value in ({"realm_access": ["roles"]}, {"realm_access": {"Roles": ["admin"]}}, {}):
        assert path in await rig.refusal(rig.token(roles=["admin"], **value), Forbidden)


async def test_the_tenant_comes_from_its_claim(rig: Rig) -> None:
    assert (await rig.oidc.verify(rig.token(orchestrator_tenant="acme-2"))).tenant == "acme-2"
    nested = rig.verifier(tenant_claim="org.id")
    assert (await nested.verify(rig.token(org={"id": "acme"}))).tenant == "acme"
    assert (await nested.verify(rig.token())).tenant == "default"
    null = rig.key.sign({**rig.idp.claims(**WANTED), "orchestrator_tenant": None})
    assert "orchestrator_tenant" in await rig.refusal(null, Forbidden)


@pytest.mark.parametrize("value", ["", "a b", "a/b", "a\n", "ä", "x" * 129, 7, ["a"], {}])
async def test_an_impossible_tenant_is_refused(rig: Rig, value: Any) -> None:
    said = await rig.refusal(rig.token(orchestrator_tenant=value), Forbidden)
    assert "orchestrator_tenant must be" in said


@pytest.mark.parametrize("value", ["", " ", " a", "a\n", "a\u202eb", "\ud800\n", "x" * 257, 7, []])
async def test_an_impossible_subject_is_refused(rig: Rig, value: Any) -> None:
    assert "sub must be" in await rig.refusal(rig.token(sub=value))


async def test_an_email_counts_when_it_is_verified(rig: Rig) -> None:
    rig.oidc = rig.verifier(person_claim="email")
    token = rig.token(email="p@x.example", email_verified=True)
    assert (await rig.oidc.verify(token)).subject == "p@x.example"
    for word in (None, False, "true", 1):
        said = await rig.refusal(rig.token(email="p@x.example", email_verified=word))
        assert "email_verified" in said
    assert "email must be" in await rig.refusal(rig.token(email_verified=True))


# ---------------------------------------------------------------- claims that keep somebody out


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"iss": "https://else.example"}, "iss"),
        ({"iss": None}, "iss"),
        ({"iss": ["x"]}, "iss"),
        ({"aud": "orchestrator2"}, "aud has none"),
        ({"aud": "ORCHESTRATOR"}, "aud has none"),
        ({"aud": None}, "aud must be"),
        ({"aud": []}, "aud has none"),
        ({"aud": ["orchestrator", 7]}, "aud must be"),
        ({"aud": {"orchestrator": 1}}, "aud must be"),
        ({"exp": None}, "no exp"),
        ({"exp": "2100-01-01"}, "exp must be"),
        ({"exp": "99999999999"}, "exp must be"),
        ({"exp": True}, "exp must be"),
        ({"exp": [99999999999]}, "exp must be"),
        ({"exp": 10**30}, "exp must be"),
        ({"exp": 10**400}, "exp must be"),
        ({"exp": 0}, "expired"),
        ({"exp": -1.5}, "expired"),
        ({"nbf": "1"}, "nbf must be"),
        ({"iat": {}}, "iat must be"),
    ],
)
async def test_claims_that_are_not_for_us_are_refused(
    rig: Rig, changes: dict[str, Any], why: str
) -> None:
    assert why in await rig.refusal(rig.token(**changes))
    assert not rig.idp.asked, "a token for somebody else made us ask the provider"


async def test_an_issuer_is_compared_exactly(rig: Rig) -> None:
    for iss in (rig.idp.issuer + "/", rig.idp.issuer.upper(), rig.idp.issuer + "#"):
        assert "iss" in await rig.refusal(rig.token(iss=iss))


async def test_one_of_several_audiences_is_enough(rig: Rig) -> None:
    assert await rig.lets_in(rig.token(aud=["x", "orchestrator"]))
    assert await rig.lets_in(rig.token(aud="other"))


async def test_times_are_judged_by_the_world_with_leeway(rig: Rig) -> None:
    now = rig.world.now() // 1000
    assert await rig.lets_in(rig.token(exp=now - 59))
    assert "expired" in await rig.refusal(rig.token(exp=now - 60))
    assert await rig.lets_in(rig.token(exp=now - 59.5))
    for claim in ("nbf", "iat"):
        assert await rig.lets_in(rig.token(**{claim: now + 60}))
        assert claim in await rig.refusal(rig.token(**{claim: now + 61}))
    token = rig.token()
    end = (await rig.oidc.verify(token)).expires_at
    rig.world.wall = end - rig.world.now() - 1
    assert await rig.lets_in(token)
    rig.world.wall += 1
    assert "expired" in await rig.refusal(token)


async def test_a_clock_that_is_set_changes_no_key(rig: Rig) -> None:
    early = rig.token()
    assert await rig.lets_in(early)
    for wall in (-DAY, 10 * DAY, -900 * DAY, 0):
        rig.world.wall = wall
        assert await rig.lets_in(rig.token())
        assert await rig.lets_in(early) == (wall == 0)
    assert rig.idp.asked[KEYS] == 1


# ---------------------------------------------------------------- what is no token of ours


async def test_forms_that_are_no_token_are_refused(rig: Rig) -> None:
    header, claims, signature = rig.token().split(".")
    deep = b64(b'{"a":' + b"[" * 2000 + b"]" * 2000 + b"}")
    for token in (
        "", ".", "..", "...", "a", "a.b", "a.b.c.d", "\ud800.a.b", "ä.ö.ü", "\x00.\x00.\x00",
        f"{header}.{claims}", f"{header}.{claims}.{signature}.", f" {header}.{claims}.{signature}",
        f"{header}.{claims}.{signature}\n", f"{header}!.{claims}.{signature}",
        f"{header}.{claims}=.{signature}", f"{header}.{claims}.{signature}==",
        f"{header[:-1]}.{claims}.{signature}",
        f"{b64(b'nonsense')}.{claims}.{signature}", f"{b64(b'[]')}.{claims}.{signature}",
        f"{b64(b'{}')}.{claims}.{signature}", f"{deep}.{claims}.{signature}",
    ):  # fmt: skip
        assert await rig.refusal(token)
    for payload in (b"nonsense", b"[]", b"5", b"null", b"\xff", b"{", b'{"a":1e999}', b""):
        assert "no JWT" in await rig.refusal(rig.key.sign(payload))
    assert "no JWT" in await rig.refusal(f"{header}.{deep}.{signature}")
    assert not rig.idp.asked


async def test_a_token_has_a_greatest_length(rig: Rig) -> None:
    assert oidc.TOKEN_BYTES == 16 * 1024
    room = (oidc.TOKEN_BYTES - len(rig.token(pad=""))) * 3 // 4
    sizes = [len(token) for n in range(room - 2, room + 8) if (token := rig.token(pad="x" * n))]
    assert min(sizes) <= oidc.TOKEN_BYTES < max(sizes)
    for n in range(room - 2, room + 8):
        token = rig.token(pad="x" * n)
        assert await rig.lets_in(token) == (len(token) <= oidc.TOKEN_BYTES)
    assert "longer than" in await rig.refusal("x" * 1_000_000)


@pytest.mark.parametrize(
    "alg", ["none", "None", "", None, "HS256", "HS384", "ES256K", "RS1", 7, []]
)
async def test_other_algorithms_are_refused_unseen(rig: Rig, alg: Any) -> None:
    claims = rig.token().split(".")[1]
    for signature in ("", "AAAA"):
        token = f"{b64({'alg': alg, 'kid': 'key-1'})}.{claims}.{signature}"
        assert "alg must be one of RS256" in await rig.refusal(token)
    assert not rig.idp.asked


@pytest.mark.parametrize("algorithm", ["RS256", "ES256"])
async def test_the_public_key_is_no_secret(rig: Rig, algorithm: str) -> None:
    key = key_of(algorithm)
    rig.idp.keys.append(key.jwk())
    public = key.private.public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    claims = rig.token().split(".")[1]
    for named in ("HS256", algorithm):
        for secret in (pem, pem.strip(), der, json.dumps(key.jwk()).encode(), b""):
            signed = f"{b64({'alg': named, 'kid': algorithm})}.{claims}"
            forged = hmac.digest(secret, signed.encode(), hashlib.sha256)
            assert await rig.refusal(f"{signed}.{b64(forged)}")
    assert await rig.lets_in(rig.token(key))


async def test_a_token_cannot_bring_its_own_key(rig: Rig) -> None:
    stranger = SigningKey()
    theirs = {"jwk": stranger.jwk(), "jku": rig.idp.issuer + "/theirs", "x5u": rig.idp.issuer}
    rig.idp.answer("/theirs", {"keys": [stranger.jwk()]})
    claims = rig.idp.claims(**WANTED)
    assert "signature" in await rig.refusal(stranger.sign(claims, **theirs))
    assert set(rig.idp.asked) == {DISCOVERY, KEYS}


async def test_tokens_of_another_kind_are_refused(rig: Rig) -> None:
    claims = rig.idp.claims(**WANTED)
    for kind in ("logout+jwt", "dpop+jwt", "JOSE", 7, ["JWT"]):
        assert "typ" in await rig.refusal(rig.key.sign(claims, typ=kind))
    for kind in ("JWT", "jwt", "at+jwt", "application/at+JWT"):
        assert await rig.lets_in(rig.key.sign(claims, typ=kind))


async def test_what_a_header_calls_critical_is_not_overlooked(rig: Rig) -> None:
    claims = rig.idp.claims(**WANTED)
    critical: list[dict[str, Any]] = [{"crit": ["x"], "x": 1}, {"crit": []}, {"b64": False}]
    for more in critical:
        assert "no JWT" in await rig.refusal(rig.key.sign(claims, **more))
    for kid in (7, None, ["key-1"]):
        header = b64({"alg": "ES256", "kid": kid})
        assert "no JWT" in await rig.refusal(f"{header}.{b64(claims)}.{b64(bytes(64))}")


# ---------------------------------------------------------------- anything at all

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
PLACE = "https://idp.example"
CLAIMS = {"iss": PLACE, "sub": "p", "exp": 1_900_000_000, "orchestrator_tenant": "t", **WANTED}


def spoiled(value: Any) -> st.SearchStrategy[Any]:
    """Values like this one, with some members replaced by anything, or others beside them."""
    members = st.dictionaries(st.sampled_from([*value, "nbf", "iat", "use", "d"]), JSON, max_size=3)
    return members.map(lambda found: {**value, **found}) | JSON


def outcome(token: str, keys: Any) -> Person | None:
    """Verify a token against a key set; any error but those that are promised fails the test."""
    rules = Rules(issuer=PLACE, audiences=("orchestrator",), jwks_url=PLACE)
    try:
        return asyncio.run(
            OIDC(rules, returning(json.dumps(keys).encode()), FakeWorld()).verify(token)
        )
    except (Unauthorized, Forbidden, Unavailable) as error:
        assert_says_nothing_of(token, error)
        return None


@given(spoiled(CLAIMS), spoiled(key_of("ES256").jwk()))
def test_no_claims_and_no_key_do_anything_unforeseen(claims: Any, jwk: Any) -> None:
    found = outcome(key_of("ES256").sign(claims), {"keys": [jwk]})
    if found is not None:
        assert isinstance(claims, dict)
        assert (claims["iss"], claims["sub"]) == (PLACE, found.subject)
        assert found.role in json.dumps(claims["orchestrator_role"])


@given(st.data())
def test_no_altered_token_gets_in(data: st.DataObject) -> None:
    token = key_of("EdDSA").sign(CLAIMS)
    start = data.draw(st.integers(0, len(token)))
    end = data.draw(st.integers(start, min(len(token), start + 40)))
    some = st.text("ABab01-_=.", max_size=4) | st.text(max_size=4)
    other = token[:start] + data.draw(some) + token[end:]
    found = outcome(other, {"keys": [key_of("EdDSA").jwk()]})
    assert (found is not None) == (other == token)


@given(spoiled({"alg": "ES256", "kid": "ES256", "typ": "JWT", "b64": True, "crit": ["b64"]}), JSON)
def test_no_forged_header_gets_in(header: Any, claims: Any) -> None:
    parts = [json.dumps(value).encode() for value in (header, CLAIMS, claims)]
    assert outcome(".".join(map(b64, parts)), {"keys": [key_of("ES256").jwk()]}) is None
