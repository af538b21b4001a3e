"""What may be dialled: every way to write an address, and what is never reached by any of them."""

import re
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

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


def allowed(guard: EgressGuard, host: str, address: str) -> bool:
    """Return whether a name of the public may lead to an address."""
    try:
        guard.judge(host, address, operator=False)
    except EgressRefused:
        return False
    return True


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
        "http://[::1]x:80/", "http://[::1]:80x/", "http://[::1][::2]/", "http://a[::1]/",
        "http://[1.2.3.4]/", "http://[::ffff:127.1]/", "http://a.b:80:80/", "http:\\\\a",
        "http://1２7.0.0.1/", "http://a\u200b.b/", "http://a.b/\ud800", "http://a.b/é",
        "http://a.b\x7f/", "http://a.b/x\\y", "http://a.b;127.0.0.1/", "http:////a.b/",
        "http://01.2.3.4/", "http://a.1/", "http://a.0x1/", "http://127.0.0.1%00/",
        "http://10.0.0.1./", "http://169.254.169.254./", f"http://{'a' * 64}.b/", "http://a../",
        f"http://{'a.' * 126}bc/", "http://./",
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
        "http://[2002:a9fe:a9fe::1]/", "HTTP://169.254.169.254:80/x?y#z",
        "http://[fd20:ce::254]/", "http://[fd00:ec2::23]/", "http://[fd00:42::42]/",
        "http://169.254.0.1/", "http://169.254.170.2/", "http://169.254.255.255/",
        "http://[fe80:1::1]/", "http://[febf::1]/", "http://[::ffff:0:169.254.169.254]/",
        "http://[64:ff9b:1::169.254.169.254]/", "http://239.255.255.250/", "http://[ff0e::1]/",
        "http://[::ffff:255.255.255.255]/", "http://[::ffff:0.0.0.0]/",
        "http://[2001:0:a9fe:a9fe::f7f7:f7f7]/", "http://[2001:0:808:808::5601:5601]/",
        "http://[2606:4700::5efe:169.254.169.254]/", "http://[fd00::200:5efe:a9fe:a9fe]/",
        "http://[64:ff9b:1:a9fe:a9:fe00:808:808]/", "http://[64:ff9b:1:a9:fe:a9fe:808:808]/",
        "http://[64:ff9b:1:0:a9:fea9:fe08:808]/", "http://[64:ff9b:1::]/",
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
     "http://100.64.0.1/", "http://[::ffff:10.0.0.1]/", "http://198.18.0.1/",
     "http://10.255.255.255/", "http://172.31.255.255/", "http://[fdff::1]/",
     "http://[64:ff9b::10.0.0.1]/", "http://[2002:a00:1::]/", "http://[::ffff:0:10.0.0.1]/",
     "http://192.0.2.1/", "http://[2001:db8::1]/", "http://[::10.0.0.1]/", "http://192.0.0.8/",
     "http://192.88.99.1/", "http://[2002:808:808::1]/", "http://[3fff::1]/", "http://[4000::1]/",
     "http://[64:ff9b:1:fffe::808:808]/", "http://[64:ff9b:1:808:8:800::]/", "http://[::8.8.8.8]/",
     "http://[::ffff:0:8.8.8.8]/", "http://[2001:20::1]/", "http://[5f00::1]/"],
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
     "http://a.b/%00", "http://a.b/@c", "http://[64:ff9b::8.8.8.8]/", "http://[::ffff:8.8.8.8]/",
     f"http://{'a' * 63}.b/", f"http://{'a.' * 126}b/", "http://1.2.3.4.com/", "http://0x7f.com/"],
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
    plain = allowed(NARROW, "x", str(address))
    assert allowed(NARROW, "x", f"::ffff:{address}") == plain
    assert allowed(NARROW, "x", f"64:ff9b::{address}") == plain
    assert not allowed(NARROW, "x", str(IPv6Address(0x2002 << 112 | int(address) << 80)))


def test_words_of_the_list_may_be_written_as_people_do() -> None:
    guard = EgressGuard((" LoopBack ", " *.Corp.Example", "10.1.2.3/16"))
    assert not reason(guard, "http://localhost/")
    guard.judge("db.corp.example", "192.168.0.1", operator=False)
    assert not reason(guard, "http://10.1.9.9/", operator=False)


def test_a_pattern_of_numbers_means_addresses_and_no_name_can_feign_it() -> None:
    guard = EgressGuard(("10.1.*", "fd00:1:*"))
    assert allowed(guard, "10.1.2.3", "10.1.2.3")
    assert allowed(guard, "db.corp.example", "10.1.2.3")
    assert allowed(guard, "db.corp.example", "fd00:1::7")
    assert not allowed(guard, "10.1.evil.example", "192.168.0.1")
    assert not allowed(guard, "db.corp.example", "10.2.2.3")


@pytest.mark.parametrize("word", ["*", "evil.example", "0.0.0.0/0", "::/0", "169.254.0.0/16",
                                  "169.254.169.254", "169.*", "fe80::/10", "fe80:*"])  # fmt: skip
def test_no_word_opens_what_is_never_dialled(word: str) -> None:
    guard = EgressGuard((word, "loopback"))
    for address in ("169.254.169.254", "fe80::1", "::ffff:169.254.169.254", "fd00:ec2::254"):
        with pytest.raises(EgressRefused, match="whatever EGRESS_ALLOW says"):
            guard.judge("evil.example", address, operator=False)
        with pytest.raises(EgressRefused, match="never dialled"):
            guard.judge("evil.example", address, operator=True)


@pytest.mark.parametrize("address", ["169.254.169.254", "127.0.0.1", "10.0.0.1", "::", "nonsense"])
def test_a_refusal_at_the_dial_says_what_to_do_next(address: str) -> None:
    with pytest.raises(EgressRefused, match=r"; (name|correct) "):
        NARROW.judge("evil.example", address, operator=False)


@pytest.mark.parametrize("word", ["127.0.0.0/8", "::1", "localhost", "*", "0.0.0.0/0", "::/0"])
def test_only_its_own_word_allows_loopback(word: str) -> None:
    for url in ("http://localhost/", "http://127.0.0.1/", "http://[::1]/"):
        assert "EGRESS_ALLOW=loopback" in reason(EgressGuard((word,)), url)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "x.localhost"])
def test_allowing_loopback_allows_no_private_network(host: str) -> None:
    guard = EgressGuard(("loopback",), loopback=True)
    assert not reason(guard, f"http://{host}/", operator=False)
    assert "EGRESS_ALLOW" in reason(guard, "http://10.0.0.1/", operator=False)


def test_a_zone_changes_nothing_about_an_address() -> None:
    with pytest.raises(EgressRefused, match="link-local"):
        OPEN.judge("x", "fe80::1%eth0", operator=True)
    NARROW.judge("x", "2606:4700::1111%eth0", operator=False)
    assert "interface" in reason(OPEN, "http://[fe80::1%25eth0]/")


@pytest.mark.parametrize(
    "url",
    ["http://u:hunter2@a.b/", "http://u:hunter2@a.b:99999/", "http://u:hunter2@a b/",
     "http://u:hunter2@[::1]x/", "ftp://u:hunter2@a.b/", "http://u:hunter2@a@b.c:x/",
     "http://u:" + "x" * 190 + "hunter2@a.b:99999/"],
)  # fmt: skip
def test_a_refusal_repeats_no_password(url: str) -> None:
    assert "hunter2" not in (reason(OPEN, url) or "hunter2")


NEVER = [
    ip_network(network)
    for network in ("169.254.0.0/16", "fe80::/10", "fd00:ec2::254/128", "100.100.100.200/32",
                    "0.0.0.0/32", "::/128", "224.0.0.0/4", "ff00::/8", "255.255.255.255/32")
]  # fmt: skip
WRITTEN: list[Callable[[IPv4Address], str]] = [
    str,
    "::ffff:{}".format,
    "::{}".format,
    "64:ff9b::{}".format,
    "::ffff:0:{}".format,
    lambda address: str(IPv6Address(0x2002 << 112 | int(address) << 80 | 1)),
    lambda address: str(IPv6Address(0x2001 << 112 | 0x8080808 << 64 | int(address) ^ 0xFFFF_FFFF)),
]


def addresses_in(
    network: IPv4Network | IPv6Network,
) -> st.SearchStrategy[IPv4Address | IPv6Address]:
    return st.integers(0, network.num_addresses - 1).map(lambda n: network[n])


@given(st.sampled_from(NEVER).flatmap(addresses_in), st.booleans())
def test_nothing_leads_to_what_is_never_dialled(
    address: IPv4Address | IPv6Address, operator: bool
) -> None:
    spellings = WRITTEN if isinstance(address, IPv4Address) else [str]
    for spelling in spellings:
        text = spelling(address)  # type: ignore[arg-type]  # only str is given an IPv6 address
        with pytest.raises(EgressRefused, match="never dialled"):
            OPEN.judge("x", text, operator=operator)
        url = f"http://[{text}]/" if ":" in text else f"http://{text}/"
        assert "never dialled" in reason(OPEN, url, operator=operator)


@given(ADDRESSES)
def test_a_url_and_a_resolved_address_are_judged_alike(address: IPv4Address | IPv6Address) -> None:
    url = f"http://[{address}]/" if address.version == 6 else f"http://{address}/"
    for operator in (True, False):
        said = reason(NARROW, url, operator=operator)
        if said:
            with pytest.raises(EgressRefused, match=f"^{re.escape(said)}$"):
                NARROW.judge(str(address), str(address), operator=operator)
        else:
            NARROW.judge(str(address), str(address), operator=operator)
