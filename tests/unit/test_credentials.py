"""Keys and tokens as texts: what we wrote is read back, and nothing else is."""

import secrets

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core import credentials
from orchestrator.core.access import OPEN, PERMISSIONS, ROLES, RUN_SCOPES, SESSION_SCOPES, nobody
from orchestrator.core.credentials import RunClaims, SessionClaims, read_token, write_token
from orchestrator.core.secret import Secret
from orchestrator.guards.secretbox import Box

BOX = Box([secrets.token_hex(32)])
OTHER = Box([secrets.token_hex(32)])
RUN = RunClaims(tenant="t", run_id="run_1", attempt=2, epoch=3, scopes=["runs:read"], expires_at=5)
SESSION = SessionClaims(tenant="t", session_id="s", scopes=["read"], expires_at=5, user_id="ü")


def make() -> tuple[str, Secret, bytes]:
    return credentials.mint_key("live", 1, secrets.token_bytes(16), secrets.token_bytes(32))


def test_a_key_is_read_as_it_was_written_and_only_its_digest_is_kept() -> None:
    key_id, text, kept = make()
    assert credentials.parse_key(text.reveal()) == (key_id, text.reveal().rpartition("_")[2])
    assert credentials.is_secret_of(text.reveal().rpartition("_")[2], kept)
    assert not credentials.is_secret_of("0" * 64, kept)
    assert len(text.reveal().rpartition("_")[2]) * 4 == 256
    assert make()[1] != text


@given(st.integers(0, 110), st.characters())
def test_a_key_with_another_character_is_no_key_or_another(at: int, character: str) -> None:
    key_id, text, kept = make()
    whole = text.reveal()
    at %= len(whole)
    changed = whole[:at] + character + whole[at + 1 :]
    found = credentials.parse_key(changed)
    if found is not None and changed != whole and found[0] == key_id:
        same_secret = found[1] == whole.rpartition("_")[2]
        assert same_secret == credentials.is_secret_of(found[1], kept)
        assert same_secret == (at < whole.index(key_id))  # only the word for people changed


@pytest.mark.parametrize("claims", [RUN, SESSION], ids=["run", "session"])
def test_a_token_says_what_was_written_to_those_with_the_key(claims: credentials.Claims) -> None:
    text = write_token(claims, BOX.sign).reveal()
    assert read_token(text, BOX.is_signed) == claims
    assert read_token(text, OTHER.is_signed) is None


@given(st.sampled_from([RUN, SESSION]), st.integers(0, 2000), st.characters())
def test_a_token_with_one_changed_character_says_nothing(
    claims: credentials.Claims, at: int, character: str
) -> None:
    text = write_token(claims, BOX.sign).reveal()
    at %= len(text)
    changed = text[:at] + character + text[at + 1 :]
    found = read_token(changed, BOX.is_signed)
    # The last character of 32 bytes in base64url has two bits that say nothing.
    assert found is None or changed == text or (found == claims and at == len(text) - 1)


def test_a_token_of_one_kind_is_none_of_the_other() -> None:
    body = write_token(RUN, BOX.sign).reveal().partition(".")[0].removeprefix("ort_")
    forged = f"ost_{body}"
    signature = credentials._base64(BOX.sign(forged.encode()))
    assert read_token(f"{forged}.{signature}", BOX.is_signed) is None


def test_an_older_key_still_verifies_and_a_seal_signs_nothing() -> None:
    old, new = secrets.token_hex(32), secrets.token_hex(32)
    text = write_token(RUN, Box([old]).sign).reveal()
    assert read_token(text, Box([new, old]).is_signed) == RUN
    assert read_token(text, Box([new]).is_signed) is None
    assert not BOX.is_signed(b"x", BOX.seal("x", "x")[:32])


def test_a_secret_never_prints() -> None:
    secret = Secret("hunter2")
    assert "hunter2" not in f"{secret} {secret!r} {[secret]}"
    assert secret == Secret("hunter2")
    assert secret != Secret("hunter3")
    with pytest.raises(TypeError):
        msgspec.json.encode({"a": secret})
    with pytest.raises(TypeError):
        hash(secret)


def test_roles_and_scopes_hold_permissions_of_the_table() -> None:
    for may in [*ROLES.values(), *SESSION_SCOPES.values(), RUN_SCOPES]:
        assert may <= PERMISSIONS.keys() - {OPEN}
    assert ROLES["admin"] == PERMISSIONS.keys() - {OPEN}
    assert not any(nobody("default").may(permission) for permission in ROLES["admin"])
    assert nobody("default").may(OPEN)
