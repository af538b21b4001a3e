"""What may be dialled: every way to write an address, and what is never reached by any of them."""

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.errors import EgressRefused
from orchestrator.guards.egress import EgressGuard

OPEN = EgressGuard(("loopback", "0.0.0.0/0", "::/0", "*"), loopback=True)
"""Everything that can be allowed is."""
NARROW = EgressGuard()


def reason(guard: EgressGuard, url: str, *, operator: bool = True) -> str:
    """Return why a URL is refused, or nothing."""
    try:
        guard.check(url, operator=operator)
    except EgressRefused as error:
        return error.message
    return ""


@pytest.mark.parametrize(
    "url",
    [
        "", "x", "ftp://a/", "file:///etc/passwd", "gopher://a", "http:", "http:/a", "http:a.b",
        "http://", "http:///", "http://?a", "http://#a", "//a.b/", "javascript:alert(1)",
        "http://a b/", "http://a\tb/", "http://a.b/\r\nX: y", "http://a.b\\@c.d/", "http://a.b\x00/",
        "http://ü.example/", "http://a。b/", "http://%61.b/", "http://a%2eb/", "http://[::1",
        "http://::1/", "http://[::1]x/", "http://[fe80::1%25eth0]/", "http://[v1.a]/", "http://[]/",
        "http://a.b:0/", "http://a.b:65536/", "http://a.b:-1/", "http://a.b:x/", "http://a.b:8 0/",
        "http://u@a.b/", "http://u:p@a.b/", "http://@a.b/", "http://a.b@127.0.0.1/",
        "http://.a/", "http://a..b/", "http://-/", "http://a!/", "http://a,b/", "http://*/",
        "http://127.1/", "http://127.0.1/", "http://2130706433/", "http://0x7f.1/", "http://0x/",
        "http://0177.0.0.1/", "http://127.0.0.0x1/", "http://1.2.3.4.5/", "http://256.1.1.1/",
        "http://01.2.3.4/", "http://a.1/", "http://a.0x1/", "http://127.0.0.1%00/",
    ],
)  # fmt: skip
def test_forms_that_parsers_disagree_on_are_refused(url: str) -> None:
    assert reason(OPEN, url)


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data/", "http://[fe80::1]/", "http://[fd00:ec2::254]/",
        "http://100.100.100.200/", "http://192.0.0.192/", "http://168.63.129.16/",
        "http://0.0.0.0/", "http://0.1.2.3/", "http://[::]/", "http://224.0.0.1/",
        "http://255.255.255.255/", "http://240.0.0.1/", "http://[ff02::1]/", "http://[fec0::1]/",
        "http://[::ffff:169.254.169.254]/", "http://[::ffff:a9fe:a9fe]/", "http://[::169.254.169.254]/",
        "http://[64:ff9b::169.254.169.254]/", "http://[64:ff9b::a9fe:a9fe]/",
        "http://[2002:a9fe:a9fe::1]/", "http://169.254.169.254./", "HTTP://169.254.169.254:80/x?y#z",
        "http://[fd20:ce::254]/",
    ],
)  # fmt: skip
def test_some_addresses_are_never_dialled_whatever_is_allowed(url: str) -> None:
    assert "never dialled" in reason(OPEN, url)


@pytest.mark.parametrize(
    "url",
    ["http://localhost:8000", "http://LOCALHOST/", "http://a.localhost/", "http://localhost./",
     "http://127.0.0.1/", "http://127.9.9.9/", "http://[::1]/", "http://[::ffff:127.0.0.1]/",
     "http://[64:ff9b::7f00:1]/", "http://[2002:7f00:1::]/"],
)  # fmt: skip
def test_loopback_is_for_servers_that_only_this_machine_reaches(url: str) -> None:
    assert "EGRESS_ALLOW=loopback" in reason(NARROW, url)
    assert not reason(EgressGuard(loopback=True), url)
    assert not reason(EgressGuard(("loopback",)), url)


@pytest.mark.parametrize(
    "url",
    ["http://10.0.0.1/", "http://172.16.0.1:99/", "https://192.168.1.1/a", "http://[fd00::1]/",
     "http://100.64.0.1/", "http://[::ffff:10.0.0.1]/", "http://198.18.0.1/"],
)  # fmt: skip
def test_private_addresses_are_for_operators(url: str) -> None:
    assert not reason(NARROW, url)
    assert "EGRESS_ALLOW" in reason(NARROW, url, operator=False)


def test_allowed_networks_and_hosts_may_be_private_for_everybody() -> None:
    guard = EgressGuard(("10.1.0.0/16", "*.corp.example", "fd00::/8"))
    assert not reason(guard, "http://10.1.2.3/", operator=False)
    assert reason(guard, "http://10.2.2.3/", operator=False)
    guard.judge("db.corp.example", "192.168.0.1", operator=False)
    guard.judge("DB.Corp.Example.", "192.168.0.1", operator=False)
    with pytest.raises(EgressRefused, match="private"):
        guard.judge("corp.example.evil", "192.168.0.1", operator=False)
    guard.judge("x", "fd00::1", operator=False)


@pytest.mark.parametrize(
    "url",
    ["http://a.b", "https://a.b:443/x?y=http://169.254.169.254/", "http://agent_1:8000",
     "http://xn--mnchen-3ya.de/", "http://8.8.8.8/", "http://[2606:4700::1111]/", "http://a.b./",
     "http://a.b/%00", "http://a.b/@c"],
)  # fmt: skip
def test_ordinary_urls_pass(url: str) -> None:
    assert not reason(NARROW, url, operator=False)


def test_names_are_judged_by_what_they_lead_to() -> None:
    with pytest.raises(EgressRefused, match=r"evil\.example \(169\.254\.169\.254\)"):
        OPEN.judge("evil.example", "169.254.169.254", operator=True)
    with pytest.raises(EgressRefused, match="own machine"):
        NARROW.judge("evil.example", "127.0.0.1", operator=True)
    with pytest.raises(EgressRefused, match="never"):
        OPEN.judge("evil.example", "fe80::1%eth0", operator=True)
    with pytest.raises(EgressRefused, match="no address"):
        OPEN.judge("evil.example", "nonsense", operator=True)


ADDRESSES = st.integers(0, 2**32 - 1).map(IPv4Address) | st.integers(0, 2**128 - 1).map(IPv6Address)


@given(ADDRESSES)
def test_the_public_may_only_be_sent_to_public_addresses(
    address: IPv4Address | IPv6Address,
) -> None:
    try:
        NARROW.judge("x", str(address), operator=False)
    except EgressRefused:
        return
    assert ip_address(str(address)).is_global
    assert not address.is_multicast


@given(st.integers(0, 2**32 - 1).map(IPv4Address))
def test_an_address_inside_another_is_judged_too(address: IPv4Address) -> None:
    def allowed(text: str) -> bool:
        try:
            NARROW.judge("x", text, operator=False)
        except EgressRefused:
            return False
        return True

    assert allowed(f"::ffff:{address}") == allowed(str(address))
    for text in (
        f"64:ff9b::{address}",
        str(IPv6Address(0x2002 << 112 | int(address) << 80)),
    ):
        assert allowed(str(address)) or not allowed(text)
