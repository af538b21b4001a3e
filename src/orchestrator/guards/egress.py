"""What may be dialled: the rules for URLs and for the addresses that their hosts turn out to be.

A URL is judged when it is registered and again, by its resolved address, at every dial, so a name
that changes its mind afterwards gains nothing.
"""

import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Final, NoReturn, TypeAlias
from urllib.parse import urlsplit

from orchestrator.core.errors import EgressRefused

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

_NEVER: Final[tuple[tuple[Network, str], ...]] = tuple(
    (ip_network(network), what)
    for network, what in (
        ("169.254.0.0/16", "link-local, where clouds keep their metadata"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "site-local, which nothing should use any more"),
        ("fd00:ec2::/32", "a cloud's metadata or credentials service"),
        ("fd20:ce::254/128", "a cloud's metadata service"),
        ("fd00:42::42/128", "a cloud's metadata service"),
        ("100.100.100.200/32", "a cloud's metadata service"),
        ("192.0.0.192/32", "a cloud's metadata service"),
        ("168.63.129.16/32", "a cloud's own wire server"),
        ("0.0.0.0/8", "no host of a network"),
        ("::/128", "no host of a network"),
        ("224.0.0.0/4", "multicast"),
        ("ff00::/8", "multicast"),
        ("240.0.0.0/4", "reserved or broadcast"),
    )
)
_TRANSLATED: Final = (
    IPv6Network("64:ff9b::/96"),  # NAT64, RFC 6052
    IPv6Network("64:ff9b:1::/48"),  # NAT64 of one site, RFC 8215
    IPv6Network("::ffff:0:0:0/96"),  # stateless translation, RFC 2765
)
_COMPATIBLE: Final = IPv6Network("::/96")
_HOST: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?\.?")
_NUMBER: Final = re.compile(r"(?:0[xX][0-9a-fA-F]*|[0-9]+)")
_BEGINNING: Final = re.compile(r"https?://[^/?#]", re.IGNORECASE)
_BRACKETED: Final = re.compile(r"\[[^\[\]]*\](?::[0-9]*)?")
_USER: Final = re.compile(r"(?:^|(?<=/))[^/]*@")
_UGLY: Final = re.compile(r"[\x00-\x20\x7f\\]|[^\x00-\x7f]")
_SHOWN: Final = 200


class EgressGuard:
    """The Egress rules of one server.

    `loopback` says that the server itself is reachable from this machine only, so agents beside
    it are natural. `allow` widens the rules: `loopback`, networks (`10.1.0.0/16`) and host
    patterns (`*.corp.example`); what is never allowed stays so.
    """

    def __init__(self, allow: Sequence[str] = (), *, loopback: bool = False) -> None:
        words = [word.strip().lower() for word in allow]
        self._loopback = loopback or "loopback" in words
        found = [(word, _network(word)) for word in words if word != "loopback"]
        self._networks = tuple(network for _, network in found if network is not None)
        self._hosts = tuple(word for word, network in found if network is None)

    def check(self, url: str, *, operator: bool) -> None:
        """Raise EgressRefused for a URL whose form or literal address is forbidden."""
        host = _host_of(url)
        literal = _literal(host)
        if literal is not None:
            self._judge(host, literal, operator=operator)
        elif host == "localhost" or host.endswith(".localhost"):
            self._judge(host, IPv4Address("127.0.0.1"), operator=operator)

    def judge(self, host: str, address: str, *, operator: bool) -> None:
        """Raise EgressRefused for a resolved address that `host` must not lead to."""
        try:
            found = ip_address(address.partition("%")[0])
        except ValueError:
            _refuse(f"{host} leads to {address[:_SHOWN]}, which is no address")
        self._judge(host.lower().rstrip("."), found, operator=operator)

    def _judge(self, host: str, address: Address, *, operator: bool) -> None:
        for one in _meanings(address):
            shown = host if host == str(one) else f"{host} ({one})"
            for network, what in _NEVER:
                if one in network:
                    _refuse(f"{shown} is {what}; that is never dialled")
            if one.is_loopback:
                self._judge_loopback(shown)
            elif not (operator or one.is_global or self._allowed(host, one)):
                _refuse(
                    f"{shown} is a private address and only an operator's URLs may be private; "
                    "add its network or host to EGRESS_ALLOW"
                )

    def _judge_loopback(self, shown: str) -> None:
        if not self._loopback:
            _refuse(
                f"{shown} is this server's own machine and the server listens to others; "
                "set EGRESS_ALLOW=loopback if that is meant"
            )

    def _allowed(self, host: str, address: Address) -> bool:
        return any(address in network for network in self._networks) or any(
            fnmatchcase(host, pattern) for pattern in self._hosts
        )


def _host_of(url: str) -> str:
    """Return the host of a URL that every parser reads alike; anything else is refused.

    The sender parses the URL with a parser of its own, so what two parsers could read differently
    (backslashes, spaces, user names, percent signs in hosts) must not get that far.
    """
    shown = repr(_USER.sub("…@", url)[:_SHOWN])
    if _UGLY.search(url):
        _refuse(f"{shown} holds a space, backslash, control or non-ASCII character; encode it")
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname or ""
    except ValueError as error:
        _refuse(f"{shown} is not a URL: {error}")
    if not _BEGINNING.match(url):
        _refuse(f"{shown} must begin with http:// or https:// and a host")
    if "@" in parts.netloc:
        _refuse("a URL must not carry a user name or password; register the agent with `auth`")
    if port == 0:
        _refuse(f"{shown} names port 0; ports go from 1 to 65535")
    if not parts.netloc.startswith("["):
        return _named(host, shown)
    # Older Pythons let text stand behind the bracket, and other parsers dial that.
    if not _BRACKETED.fullmatch(parts.netloc):
        _refuse(f"{shown} has something other than a port behind its brackets")
    return _bracketed(host, shown)


def _named(host: str, shown: str) -> str:
    if not _HOST.fullmatch(host) or ".." in host:
        _refuse(f"{shown} names a host that is no host name")
    return host.rstrip(".")


def _bracketed(host: str, shown: str) -> str:
    if "%" in host:
        _refuse(f"{shown} names a network interface in its address; that is never dialled")
    try:
        return str(IPv6Address(host))
    except ValueError:
        _refuse(f"{shown} names no IPv6 address between its brackets")


def _literal(host: str) -> Address | None:
    """Return the address that `host` writes out, None for a name.

    What ends in a number is an address to a browser, and to a resolver often too (WHATWG URL,
    "ends in a number"); only the four plain decimal numbers are taken.
    """
    if ":" in host:
        return IPv6Address(host)
    if not _NUMBER.fullmatch(host.rpartition(".")[2]):
        return None
    try:
        return IPv4Address(host)
    except ValueError:
        _refuse(f"{host[:_SHOWN]} is an odd way to write an address; write four decimals")


def _meanings(address: Address) -> Iterator[Address]:
    """Yield what a packet to `address` may reach: an IPv6 address can carry an IPv4 one."""
    if isinstance(address, IPv4Address):
        yield address
        return
    mapped = address.ipv4_mapped
    if mapped is not None:
        yield mapped
        return
    yield address
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo
    compatible = address in _COMPATIBLE and not address.is_loopback
    if compatible or any(address in network for network in _TRANSLATED):
        yield IPv4Address(int(address) & 0xFFFF_FFFF)


def _network(word: str) -> Network | None:
    try:
        return ip_network(word, strict=False)
    except ValueError:
        return None


def _refuse(message: str) -> NoReturn:
    raise EgressRefused(message)
