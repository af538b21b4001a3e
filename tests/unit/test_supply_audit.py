"""The audit: what is known is said, what cannot be asked is said, and neither ends with 0."""

import json
import socket
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from deploy import osv, supply_chain
from deploy.audit import ACCEPTED
from deploy.audit import accepted as read
from deploy.audit import audit as weigh

from .osv_rig import BATCH, FakeOsv

ALPHA, BETA = ("alpha", "1.0"), ("beta", "2.0")
GHSA, PYSEC, CVE = "GHSA-aaaa-bbbb-cccc", "PYSEC-2026-1", "CVE-2026-0001"
FIXED = {
    "affected": [
        {
            "package": {"ecosystem": "PyPI", "name": "Alpha"},
            "ranges": [
                {"type": "GIT", "events": [{"introduced": "0"}, {"fixed": "c0ffee"}]},
                {
                    "type": "ECOSYSTEM",
                    "events": [{"introduced": "0"}, {"fixed": "1.1"}, {"introduced": "2"}],
                },
                {"type": "ECOSYSTEM", "events": [{"introduced": "2"}, {"fixed": "2.3"}]},
            ],
        },
        {
            "package": {"ecosystem": "Debian", "name": "alpha"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"fixed": "0.9-1"}]}],
        },
    ]
}
TODAY = f"{datetime.now(UTC):%Y-}"
"""Its year is enough: a test may run over midnight."""


class Audited:
    """An audit of a checkout, and what it said."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root = root
        self._capsys = capsys
        self.out: list[str] = []
        self.err = ""

    def lock(self, *packages: tuple[str, str]) -> None:
        pins = "".join(f"{n}=={v} \\\n    --hash=sha256:{'a' * 64}\n" for n, v in packages)
        (self.root / "requirements.lock").write_text(pins)

    def accept(self, text: str) -> None:
        (self.root / "deploy").mkdir(exist_ok=True)
        (self.root / ACCEPTED).write_text(text)

    def __call__(self, address: str) -> int:
        code = supply_chain.main(["audit", "--osv", address, "--root", str(self.root)])
        said = self._capsys.readouterr()
        self.out, self.err = said.out.splitlines(), said.err
        return code

    def refused(self, address: str) -> str:
        """Return why it could not be audited; that is one sentence, and nothing else is said."""
        assert self(address) == 3
        assert self.out == []
        assert self.err.startswith("NOT AUDITED: ")
        assert self.err.endswith(f"; run it where {address} can be reached\n")
        assert self.err.count("\n") == 1
        return self.err.removeprefix("NOT AUDITED: ").rpartition("; ")[0]


@pytest.fixture
def audit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Audited:
    monkeypatch.setenv("no_proxy", "*")
    found = Audited(tmp_path, capsys)
    found.lock(ALPHA, BETA)
    return found


@pytest.fixture
def fake() -> FakeOsv:
    return FakeOsv()


@pytest.fixture
def address(fake: FakeOsv) -> Iterator[str]:
    with fake.serving() as found:
        yield found


def accepted(name: str, expires: str, package: str = "alpha", reason: str = "not called") -> str:
    return (
        f'[[accepted]]\nid = "{name}"\npackage = "{package}"\n'
        f'reason = "{reason}"\nexpires = {expires}\n'
    )


# Answers


def test_nothing_known_is_success_and_says_how_much_was_asked_and_when(
    audit: Audited, fake: FakeOsv, address: str
) -> None:
    assert audit(address) == 0
    assert len(audit.out) == 1
    assert audit.out[0].startswith(f"no known advisories for 2 packages (asked {TODAY}")
    assert (fake.asked, fake.sizes) == ([BATCH], [2])


def test_an_advisory_is_told_with_where_it_is_fixed_and_how_bad_it_is(
    audit: Audited, fake: FakeOsv, address: str
) -> None:
    fake.add(ALPHA, GHSA, aliases=[CVE], database_specific={"severity": "HIGH"}, **FIXED)
    fake.add(BETA, PYSEC, severity=[{"type": "CVSS_V3", "score": "CVSS:3.1/AV:N"}])
    assert audit(address) == 1
    assert audit.out[:2] == [
        f"{GHSA} ({CVE}): alpha 1.0, fixed in 1.1, 2.3, severity HIGH",
        f"{PYSEC}: beta 2.0, no fixed version named, severity CVSS:3.1/AV:N",
    ]
    assert audit.out[2].startswith(f"known advisories: 2 for 2 packages (asked {TODAY}")


def test_all_pages_are_read(audit: Audited, fake: FakeOsv, address: str) -> None:
    names = [f"GHSA-{n}" for n in range(7)]
    for name in names:
        fake.add(ALPHA, name)
    fake.add(BETA, PYSEC)
    fake.page = 3
    assert audit(address) == 1
    assert [line.partition(":")[0] for line in audit.out[:-1]] == [*names, PYSEC]
    assert fake.sizes == [2, 1, 1], "only what has another page is asked again"


def test_many_packages_are_asked_in_turns(audit: Audited, fake: FakeOsv, address: str) -> None:
    audit.lock(*((f"p{n}", "1") for n in range(osv.BATCH + 5)))
    fake.add(("p1004", "1"), GHSA)
    assert audit(address) == 1
    assert fake.sizes == [osv.BATCH, 5]


def test_one_advisory_of_two_packages_is_told_for_both_and_asked_once(
    audit: Audited, fake: FakeOsv, address: str
) -> None:
    fake.add(ALPHA, GHSA)
    fake.add(BETA, GHSA)
    assert audit(address) == 1
    assert [line.split(",")[0] for line in audit.out[:2]] == [
        f"{GHSA}: alpha 1.0",
        f"{GHSA}: beta 2.0",
    ]
    assert fake.asked == [BATCH, f"/v1/vulns/{GHSA}"]


def test_a_withdrawn_advisory_is_none(audit: Audited, fake: FakeOsv, address: str) -> None:
    fake.add(ALPHA, GHSA, withdrawn="2026-01-02T00:00:00Z")
    assert audit(address) == 0
    assert f"/v1/vulns/{GHSA}" in fake.asked


def test_what_is_told_cannot_control_the_terminal(
    audit: Audited, fake: FakeOsv, address: str
) -> None:
    fake.add(ALPHA, GHSA, aliases=["\x1b[2J"], database_specific={"severity": "a\nb" + "x" * 999})
    assert audit(address) == 1
    assert len(audit.out) == 2
    assert "\x1b" not in audit.out[0]
    assert len(audit.out[0]) < 300


# Acceptances


@pytest.mark.parametrize("name", [GHSA, CVE])
def test_an_accepted_advisory_is_told_and_lets_the_audit_pass(
    audit: Audited, fake: FakeOsv, address: str, name: str
) -> None:
    fake.add(ALPHA, GHSA, aliases=[CVE])
    audit.accept(accepted(name, "9999-12-31"))
    assert audit(address) == 0
    assert audit.out[0].endswith("; accepted until 9999-12-31: not called")
    assert audit.out[1].startswith("no known advisories for 2 packages besides 1 accepted (asked ")


def test_an_acceptance_that_has_ended_is_none(audit: Audited, fake: FakeOsv, address: str) -> None:
    fake.add(ALPHA, GHSA)
    audit.accept(accepted(GHSA, "2000-01-01"))
    assert audit(address) == 1
    assert audit.out[0].endswith("; its acceptance ended on 2000-01-01")


def test_an_acceptance_holds_through_its_last_day(
    audit: Audited, fake: FakeOsv, address: str
) -> None:
    fake.add(ALPHA, GHSA)
    audit.accept(accepted(GHSA, "2027-01-31"))
    days = [date(2027, 1, 30), date(2027, 1, 31), date(2027, 2, 1)]
    assert [weigh(audit.root, address, day, audit.out.append) for day in days] == [0, 0, 1]


def test_an_acceptance_is_for_one_package_and_one_advisory(
    audit: Audited, fake: FakeOsv, address: str
) -> None:
    fake.add(ALPHA, GHSA)
    fake.add(BETA, GHSA)
    fake.add(ALPHA, PYSEC)
    audit.accept(accepted(GHSA, "9999-12-31"))
    assert audit(address) == 1
    assert [" accepted until " in line for line in audit.out] == [True, False, False, False]
    assert audit.out[-1].startswith("known advisories: 2 for 2 packages besides 1 accepted (")


def test_an_acceptance_that_nothing_needs_is_told(audit: Audited, address: str) -> None:
    audit.accept(accepted(GHSA, "9999-12-31"))
    assert audit(address) == 0
    assert audit.out[0] == f"{ACCEPTED} accepts {GHSA} for alpha, which nobody names: remove it"


@pytest.mark.parametrize(
    "text",
    [
        "accepted", 'accepted = "all"', '[[accepted]]\nid = "x"', accepted(GHSA, '"soon"'),
        accepted(GHSA, "9999-12-31", reason=" "), accepted(GHSA, "9999-12-31") + "forever = true\n",
        "[[acepted]]\n", accepted(GHSA, "9999-12-31T00:00:00"),
    ],
)  # fmt: skip
def test_a_file_of_acceptances_that_is_not_whole_is_refused(
    audit: Audited, fake: FakeOsv, address: str, text: str
) -> None:
    audit.accept(text)
    assert audit(address) == 3
    assert audit.err.startswith(f"NOT AUDITED: {ACCEPTED} ")
    assert (audit.out, fake.asked) == ([], [])


def test_the_repositorys_own_acceptances_are_whole() -> None:
    assert all(one.reason for one in read(supply_chain.ROOT))


# No answer


def test_a_server_that_cannot_be_reached(audit: Audited) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    why = audit.refused(f"http://127.0.0.1:{port}")
    assert why.startswith(f"http://127.0.0.1:{port} did not answer (")
    assert "refused" in why


@pytest.mark.parametrize("status", [500, 503, 429, 404, 403, 400, 304])
@pytest.mark.parametrize("path", [BATCH, f"/v1/vulns/{GHSA}"])
def test_a_server_that_fails(
    audit: Audited, fake: FakeOsv, address: str, status: int, path: str
) -> None:
    fake.add(ALPHA, GHSA)
    fake.instead[path] = (status, b'{"results":[{},{}]}')
    assert audit.refused(address) == f"{address}{path} answered {status}"
    assert path in fake.asked


@pytest.mark.parametrize(
    "body",
    [
        b"", b"<html>Sign in to this network</html>", b'{"results":[{},{}]', b"null", b"[]", b"{}",
        b'{"results":null}', b'{"results":{}}', b'{"results":[{}]}', b'{"results":[{},{},{}]}',
        b'{"results":[{},null]}', b'{"results":[{},[]]}', b'{"results":[{},{"vulns":null}]}',
        b'{"results":[{},{"vulns":[{}]}]}', b'{"results":[{},{"vulns":[{"id":5}]}]}',
        b'{"results":[{},{"vulns":["GHSA-1"]}]}', b'{"results":[{},{"next_page_token":7}]}',
        b'{"results":[{},{"vulns":[{"id":"../../etc"}]}]}',
        b'{"results":[{},{"vulns":[{"id":""}]}]}',
        b'{"results":[{},{"vulns":[{"id":"a\\u001b[2J"}]}]}', b"\xff\xfe", b"[" * 100_000,
        b'{"results":[{},{"vulns":[{"id":"\xff"}]}]}',
    ],
)  # fmt: skip
def test_an_answer_that_is_none(audit: Audited, fake: FakeOsv, address: str, body: bytes) -> None:
    fake.instead[BATCH] = (200, body)
    assert audit.refused(address).startswith(f"the answer of {address}{BATCH} ")
    assert fake.asked == [BATCH]


@pytest.mark.parametrize(
    "detail",
    [
        {}, {"id": "GHSA-other"}, {"id": GHSA, "aliases": "x"}, {"id": GHSA, "affected": [5]},
        {"id": GHSA, "affected": [{"package": {"name": 5}}]},
        {"id": GHSA, "affected": [{"ranges": [{}]}]}, {"id": GHSA, "severity": [5]},
        {"id": GHSA, "withdrawn": True},
    ],
)  # fmt: skip
def test_a_detail_that_is_none(
    audit: Audited, fake: FakeOsv, address: str, detail: dict[str, object]
) -> None:
    fake.add(ALPHA, GHSA)
    fake.instead[f"/v1/vulns/{GHSA}"] = (200, json.dumps(detail).encode())
    assert audit.refused(address).startswith(f"the answer of {address}/v1/vulns/{GHSA} ")


def test_an_answer_without_end(audit: Audited, fake: FakeOsv, address: str) -> None:
    fake.instead[BATCH] = (200, b" " * (osv.SIZE_MAX + 1))
    assert audit.refused(address) == f"{address}{BATCH} answered more than 5 MiB"


def test_pages_without_end(audit: Audited, fake: FakeOsv, address: str) -> None:
    audit.lock(ALPHA)
    fake.instead[BATCH] = (200, b'{"results":[{"next_page_token":"again"}]}')
    assert audit.refused(address) == f"{address} wants more than {osv.REQUESTS_MAX} requests"
    assert len(fake.asked) == osv.REQUESTS_MAX


def test_a_server_that_says_nothing(
    audit: Audited, fake: FakeOsv, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(osv, "TIME_S", 0.1)
    fake.silent = True
    assert audit.refused(address) == f"{address} did not answer (timed out)"
    assert fake.asked == [BATCH]


def test_a_server_that_never_ends(
    audit: Audited, fake: FakeOsv, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock:
        monotonic = iter(range(0, 1000, 15)).__next__

    monkeypatch.setattr(osv, "time", Clock)
    fake.slow = True
    assert audit.refused(address) == f"{address}{BATCH} took longer than 20 s"
    assert fake.asked == [BATCH]


def test_locks_that_are_not_understood_are_not_audited(
    audit: Audited, fake: FakeOsv, address: str
) -> None:
    (audit.root / "requirements.lock").write_text("alpha>=1\n")
    assert audit(address) == 3
    assert audit.err.startswith("NOT AUDITED: line 1 of requirements.lock is not a pin")
    assert fake.asked == []


@pytest.mark.parametrize(
    "text", ["", "ftp://a", "file:///etc/passwd", "http://", "http://[", "osv"]
)
def test_what_is_no_address_is_a_mistake_in_the_command(audit: Audited, text: str) -> None:
    with pytest.raises(SystemExit) as ended:
        audit(text)
    assert ended.value.code == 2
