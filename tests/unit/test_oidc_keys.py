"""The keys of an identity provider: which one counts, and how gently they are asked for."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from structlog.testing import capture_logs

from orchestrator.core.errors import SettingsInvalid, Unavailable
from orchestrator.guards import oidc
from orchestrator.guards.oidc import OIDC
from orchestrator.testing.fake_idp import DISCOVERY, KEYS, SigningKey

from .oidc_rig import DAY, MINUTE, WANTED, Rig, key_of, open_rig, returning


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with open_rig() as opened:
        yield opened


# ---------------------------------------------------------------- which key


@pytest.mark.parametrize(
    ("algorithm", "members"),
    [
        ("RS256", {"alg": "PS256"}),
        ("RS256", {"alg": "RS384"}),
        ("RS256", {"alg": "HS256"}),
        ("ES256", {"alg": "ES256K"}),
        ("ES256", {"use": "enc"}),
        ("ES256", {"use": ""}),
        ("ES256", {"key_ops": ["encrypt"]}),
        ("ES256", {"kty": "RSA"}),
        ("ES256", {"kty": "oct", "k": "AAAA"}),
        ("ES256", {"crv": "P-384"}),
        ("ES256", {"x": "AAAA"}),
        ("ES256", {"y": 5}),
        ("EdDSA", {"crv": "Ed448"}),
        ("EdDSA", {"x": None}),
        ("RS256", {"e": "AQ"}),
        ("RS256", {"n": "AQAB"}),
        ("RS256", {"n": "B" * 1400}),
        ("RS256", {"kid": 7}),
    ],
)
async def test_what_a_key_says_of_itself_is_respected(
    rig: Rig, algorithm: str, members: dict[str, Any]
) -> None:
    key = key_of(algorithm)
    rig.idp.keys.append(key.jwk(**members))
    assert "no key" in await rig.refusal(rig.token(key))
    assert await rig.lets_in(rig.token()), "one bad key spoiled the others"


async def test_a_key_that_says_less_may_do_what_its_kind_can(rig: Rig) -> None:
    rig.idp.keys[:] = [key_of("RS256").jwk(alg=None, use=None, key_ops=["verify"])]
    for algorithm in ("RS256", "PS512"):
        signer = SigningKey("ES256", "RS256")
        signer.algorithm, signer.private = algorithm, key_of("RS256").private
        assert await rig.lets_in(rig.token(signer))
    assert "no key" in await rig.refusal(rig.token(SigningKey("ES256", "RS256")))
    rig.idp.keys[:] = [key_of("ES384").jwk(alg=None)]
    rig.oidc = rig.verifier()
    assert await rig.lets_in(rig.token(key_of("ES384")))
    assert "no key" in await rig.refusal(rig.token(SigningKey("ES256", "ES384")))


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
async def test_a_key_whose_private_half_is_published_proves_nothing(
    rig: Rig, algorithm: str
) -> None:
    key = key_of(algorithm)
    both = jwt.get_algorithm_by_name(algorithm).to_jwk(key.private, as_dict=True)
    assert both["d"]
    rig.idp.keys.append({"kid": algorithm, **both, "key_ops": ["verify"]})
    assert "no key" in await rig.refusal(rig.token(key))


async def test_a_short_rsa_key_is_not_taken(rig: Rig) -> None:
    key = SigningKey("RS256", "short")
    key.private = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505  # the point
    rig.idp.keys.append(key.jwk())
    signed = key_of("RS256").sign(rig.idp.claims(**WANTED), kid="short")
    assert "no key" in await rig.refusal(signed)


async def test_without_a_kid_there_must_be_no_choice(rig: Rig) -> None:
    rig.key.kid = None
    assert await rig.lets_in(rig.token())
    other = SigningKey("ES384", None)
    rig.idp.keys.append(other.jwk())
    rig.oidc = rig.verifier()
    assert await rig.lets_in(rig.token(other))
    other.kid = "key-2"
    assert "no key" in await rig.refusal(rig.token(other))
    rig.idp.add_key("ES256", "key-2")
    rig.oidc = rig.verifier()
    assert "several keys" in await rig.refusal(rig.token())


async def test_keys_may_share_a_kid(rig: Rig) -> None:
    second, other_kind = rig.idp.add_key(), rig.idp.add_key("EdDSA")
    for key in (rig.key, second, other_kind):
        assert await rig.lets_in(rig.token(key))
    assert "signature" in await rig.refusal(rig.token(SigningKey()))


async def test_a_rotation_is_noticed(rig: Rig) -> None:
    old = rig.token()
    assert await rig.lets_in(old)
    new = rig.idp.add_key("ES256", "key-2")
    del rig.idp.keys[0]
    rig.wait(29_999)
    assert "try again in 30 s" in await rig.refusal(rig.token(new))
    assert rig.idp.asked[KEYS] == 1
    rig.wait(1)
    assert await rig.lets_in(rig.token(new))
    assert not await rig.lets_in(old), "a key that was withdrawn still opens"
    assert rig.idp.asked[KEYS] == 2


async def test_a_withdrawn_key_is_forgotten_in_ten_minutes(rig: Rig) -> None:
    assert await rig.lets_in(rig.token())
    rig.idp.keys.clear()
    rig.wait(10 * MINUTE - 1)
    assert await rig.lets_in(rig.token())
    rig.wait(1)
    assert "no key" in await rig.refusal(rig.token())
    assert rig.idp.asked == {DISCOVERY: 2, KEYS: 2}


# ---------------------------------------------------------------- a provider away or pressed


async def test_a_provider_that_was_never_there_is_asked_again_soon(rig: Rig) -> None:
    rig.idp.away = True
    for wait, asked in ((0, 1), (4_999, 1), (1, 2)):
        rig.wait(wait)
        assert "cannot be had" in await rig.refusal(rig.token(), Unavailable)
        assert rig.idp.asked[DISCOVERY] == asked
    rig.idp.away = False
    rig.wait(5_000)
    assert await rig.lets_in(rig.token())


async def test_old_keys_serve_a_day_while_the_provider_is_away(rig: Rig) -> None:
    assert await rig.lets_in(rig.token())
    rig.idp.away = True
    rig.wait(10 * MINUTE)
    with capture_logs() as lines:
        for _ in range(3):
            assert await rig.lets_in(rig.token())
    assert rig.idp.asked[DISCOVERY] == 2, "the absence was not met, or asked after too often"
    assert [line["event"] for line in lines] == ["oidc_keys_missed"]
    assert "hung up" in lines[0]["error"]
    await rig.refusal(rig.token(SigningKey("ES256", "new")), Unavailable)
    rig.wait(DAY - 10 * MINUTE - 1)
    assert await rig.lets_in(rig.token())
    rig.wait(1)
    await rig.refusal(rig.token(), Unavailable)
    rig.idp.away = False
    rig.wait(30_000)
    assert await rig.lets_in(rig.token())


async def test_strangers_cannot_make_us_hammer_the_provider(rig: Rig) -> None:
    strange = SigningKey("ES256", "x")
    tokens = [strange.sign(rig.idp.claims(**WANTED), kid=f"kid-{n}") for n in range(100)]
    for at in range(0, 120, 10):
        for token in tokens:
            assert "no key" in await rig.refusal(token)
        assert rig.idp.asked[KEYS] == rig.idp.asked[DISCOVERY] == 1 + at // 30
        rig.wait(10_000)
    rig.idp.away = True
    for token in tokens:
        await rig.refusal(token, Unavailable)
    assert rig.idp.asked[DISCOVERY] == 5
    assert await rig.lets_in(rig.token())


async def test_many_at_once_share_one_question(rig: Rig) -> None:
    rig.idp.hold()
    async with asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(rig.oidc.verify(rig.token())) for _ in range(50)]
        while not rig.idp.asked:
            await asyncio.sleep(0)
        assert not [task for task in waiting if task.done()]
        rig.idp.release()
    assert {task.result().subject for task in waiting} == {"person-1"}
    assert rig.idp.asked == {DISCOVERY: 1, KEYS: 1}


async def test_who_has_a_key_does_not_wait_for_a_slow_provider(rig: Rig) -> None:
    assert await rig.lets_in(rig.token())
    rig.wait(10 * MINUTE)
    rig.idp.hold()
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(rig.oidc.verify(rig.token()))
        while rig.idp.asked[DISCOVERY] < 2:
            await asyncio.sleep(0)
        assert await rig.lets_in(rig.token())
        assert not first.done()
        rig.idp.release()


async def test_a_question_given_up_is_no_harm_and_no_way_to_hammer(rig: Rig) -> None:
    rig.idp.hold()
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(rig.oidc.verify(rig.token()))
        while not rig.idp.asked:
            await asyncio.sleep(0)
        second = tasks.create_task(rig.refusal(rig.token(), Unavailable))
        await asyncio.sleep(0)
        first.cancel()
    assert second.result()
    rig.idp.release()
    await rig.refusal(rig.token(), Unavailable)
    assert rig.idp.asked == {DISCOVERY: 1}
    rig.wait(5_000)
    assert await rig.lets_in(rig.token())


async def test_a_provider_that_hangs_is_given_up(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    async def hang(url: str) -> bytes:
        asked.append(url)
        await asyncio.Event().wait()
        return b""

    monkeypatch.setattr(oidc, "_PATIENCE_S", 0.05)
    rig.fetch = hang
    rig.oidc = rig.verifier()
    async with asyncio.timeout(30):
        await rig.refusal(rig.token(), Unavailable)
    assert asked == [rig.idp.issuer + DISCOVERY]


async def test_an_answer_has_a_greatest_length(rig: Rig) -> None:
    bare = len(json.dumps({"keys": rig.idp.keys, "pad": ""}))
    for size in (oidc.BODY_BYTES, oidc.BODY_BYTES + 1):
        rig.idp.answer(KEYS, {"keys": rig.idp.keys, "pad": "x" * (size - bare)})
        body = rig.idp.documents[KEYS]
        assert len(body) == size
        for fetch in (rig.fetch, returning(body)):
            rig.oidc = OIDC(rig.rules(jwks_url=rig.idp.issuer + KEYS), fetch, rig.world)
            if size == oidc.BODY_BYTES:
                assert await rig.lets_in(rig.token())
            else:
                await rig.refusal(rig.token(), Unavailable)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (DISCOVERY, b""),
        (DISCOVERY, b"<html>"),
        (DISCOVERY, b"{}"),
        (DISCOVERY, b'{"issuer":"%(issuer)s"}'),
        (DISCOVERY, b'{"issuer":"%(issuer)s/","jwks_uri":"%(issuer)s/keys"}'),
        (DISCOVERY, b'{"issuer":"https://e.example","jwks_uri":"%(issuer)s/keys"}'),
        (DISCOVERY, b'{"issuer":"%(issuer)s","jwks_uri":"http://idp.example:%(port)s/keys"}'),
        (DISCOVERY, b'{"issuer":"%(issuer)s","jwks_uri":"file:///keys"}'),
        (DISCOVERY, b'{"issuer":"%(issuer)s","jwks_uri":"%(issuer)s/gone"}'),
        (KEYS, b"\xff"),
        (KEYS, b"[]"),
        (KEYS, b'{"keys":{}}'),
        (KEYS, b'{"keys":[' + b"{}," * 64 + b"{}]}"),
    ],
)
async def test_answers_that_are_none_leave_the_old_keys(rig: Rig, path: str, body: bytes) -> None:
    assert await rig.lets_in(rig.token())
    issuer = rig.idp.issuer.encode()
    port = issuer.rpartition(b":")[2]
    rig.idp.documents[path] = body.replace(b"%(issuer)s", issuer).replace(b"%(port)s", port)
    rig.wait(10 * MINUTE)
    assert await rig.lets_in(rig.token())
    assert rig.idp.asked[DISCOVERY] == 2
    rig.oidc = rig.verifier()
    await rig.refusal(rig.token(), Unavailable)


async def test_keys_are_had_without_discovery_where_their_place_is_told(rig: Rig) -> None:
    rig.oidc = rig.verifier(jwks_url=rig.idp.issuer + KEYS)
    rig.idp.keys.extend([7, None, [], {}, *({"kty": "EC", "kid": str(n)} for n in range(59))])
    assert len(rig.idp.keys) == oidc.KEYS_MAX
    assert await rig.lets_in(rig.token())
    assert rig.idp.asked == {KEYS: 1}


@pytest.mark.parametrize(
    ("rules", "why"),
    [
        ({"issuer": "http://idp.example"}, "OIDC_ISSUER"),
        ({"issuer": "http://127.0.0.1.example"}, "OIDC_ISSUER"),
        ({"issuer": "https://"}, "OIDC_ISSUER"),
        ({"issuer": "https://[x"}, "OIDC_ISSUER"),
        ({"issuer": "https://idp.example/?a=b"}, "OIDC_ISSUER"),
        ({"issuer": "https://idp.example/#"}, "OIDC_ISSUER"),
        ({"issuer": "idp.example"}, "OIDC_ISSUER"),
        ({"jwks_url": "http://idp.example/keys"}, "OIDC_JWKS_URL"),
        ({"audiences": ()}, "OIDC_AUDIENCE"),
        ({"audiences": ("",)}, "OIDC_AUDIENCE"),
        ({"leeway_s": -1}, "leeway"),
        ({"leeway_s": 601}, "leeway"),
    ],
)
async def test_rules_that_protect_nothing_are_refused(
    rig: Rig, rules: dict[str, Any], why: str
) -> None:
    with pytest.raises(SettingsInvalid, match=why):
        rig.verifier(**rules)


async def test_a_slash_at_the_end_of_an_issuer_is_not_doubled(rig: Rig) -> None:
    rig.idp.issuer += "/"
    rig.idp.answer(DISCOVERY, {"issuer": rig.idp.issuer, "jwks_uri": rig.idp.issuer[:-1] + KEYS})
    rig.oidc = rig.verifier()
    assert await rig.lets_in(rig.token())
    assert rig.idp.asked == {DISCOVERY: 1, KEYS: 1}
