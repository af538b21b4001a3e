"""The chain of the audit log: whatever is changed, moved, added or gone breaks it."""

from typing import Any

from msgspec.structs import replace

from orchestrator.core.audit import broken, chained
from orchestrator.core.records import NEXT, AuditEntry


def entry(number: int) -> AuditEntry:
    return AuditEntry(
        tenant="t", seq=NEXT, at=number, actor="a", action="key.create", target=f"k{number}",
        detail=f"{number}",
    )  # fmt: skip


def chain(length: int = 6) -> list[AuditEntry]:
    found: list[AuditEntry] = []
    for number in range(length):
        last = (found[-1].seq, found[-1].hash) if found else None
        found.append(chained(entry(number), last))
    return found


def test_an_untouched_chain_holds_also_in_pieces() -> None:
    whole = chain()
    assert [one.seq for one in whole] == [1, 2, 3, 4, 5, 6]
    assert broken(whole) is None
    assert broken([]) is None
    assert broken(whole[3:], whole[2].hash, 3) is None


def test_each_changed_field_is_found_where_it_is() -> None:
    changes: tuple[dict[str, Any], ...] = (
        {"tenant": "u"}, {"seq": 9}, {"at": 9}, {"actor": "b"}, {"action": "key.revoke"},
        {"target": "k9"}, {"detail": "{}"}, {"hash": bytes(32)},
    )  # fmt: skip
    assert {name for change in changes for name in change} == set(AuditEntry.__struct_fields__)
    for change in changes:
        for at in range(6):
            touched = chain()
            touched[at] = replace(touched[at], **change)
            assert broken(touched) == at + 1, (change, at)


def test_what_is_gone_added_or_swapped_is_found() -> None:
    whole = chain()
    assert broken(whole[:2] + whole[3:]) == 3
    assert broken(whole[1:]) == 1
    assert broken([whole[0], whole[2], whole[1], *whole[3:]]) == 2
    assert broken([*whole[:3], whole[2], *whole[3:]]) == 4
    rewritten = replace(whole[2], target="other")
    resealed = chained(rewritten, (whole[1].seq, whole[1].hash))
    assert broken([*whole[:2], resealed, *whole[3:]]) == 4  # its own hash is right, the next is not
