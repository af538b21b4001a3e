"""The secret box: what it keeps is unreadable, unalterable and bound; its keys can change."""

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from orchestrator.core.errors import SettingsInvalid
from orchestrator.core.secret import Secret
from orchestrator.guards.secretbox import Box, keys_in, open_box

OLD, NEW = "o" * 32, "n" * 32
SECRET = "a planted canary"


def test_what_is_sealed_can_be_read_again_and_only_here() -> None:
    box = Box([OLD])
    sealed = box.seal(SECRET, "agent:default/demo")
    assert box.unseal(sealed, "agent:default/demo") == SECRET
    assert SECRET.encode() not in sealed
    assert sealed != box.seal(SECRET, "agent:default/demo")
    with pytest.raises(ValueError, match="another place"):
        box.unseal(sealed, "agent:default/other")


def test_every_changed_or_missing_byte_is_noticed() -> None:
    box = Box([OLD])
    sealed = box.seal(SECRET, "c")
    for at in range(len(sealed)):
        altered = sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]
        for broken in (altered, sealed[:at]):
            with pytest.raises(ValueError, match="sealed"):
                box.unseal(broken, "c")


def test_keys_can_be_exchanged() -> None:
    sealed = Box([OLD]).seal(SECRET, "c")
    both = Box([NEW, OLD])
    assert both.unseal(sealed, "c") == SECRET
    again = both.seal(SECRET, "c")
    assert Box([NEW]).unseal(again, "c") == SECRET
    with pytest.raises(ValueError, match="another key"):
        Box([OLD]).unseal(again, "c")


def test_a_key_file_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "orchestrator.db.key"
    sealed = open_box([], path).seal(SECRET, "c")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert open_box([], str(path)).unseal(sealed, "c") == SECRET
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_of_many_who_make_the_file_at_once_all_get_the_same_key(tmp_path: Path) -> None:
    for number in range(20):
        path = tmp_path / f"{number}.key"
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(keys_in, [path] * 8))
        assert len({tuple(keys) for keys in found}) == 1
    assert len(list(tmp_path.iterdir())) == 20


def test_a_key_file_may_hold_a_list(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"{NEW}\n{OLD}\n")
    assert keys_in(path) == [NEW, OLD]


@pytest.mark.parametrize("text", [b"", b"\n", b"short", b"\xff" * 40])
def test_a_bad_key_file_is_refused_with_its_name(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "keys"
    path.write_bytes(text)
    with pytest.raises(SettingsInvalid, match=str(path)):
        keys_in(path)
    assert path.read_bytes() == text


def test_bad_keys_and_places_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match="SECRET_KEY needs keys of at least 32"):
        open_box([Secret("short")], tmp_path / "unused")
    with pytest.raises(SettingsInvalid, match="cannot be made"):
        keys_in(tmp_path / "no such place" / "key")
    assert list(tmp_path.iterdir()) == []
