"""What may be dialled: the rules for URLs and for the addresses that their hosts turn out to be.

A URL is judged when it is registered and again, by its resolved address, at every dial, so a name
that changes its mind afterwards gains nothing.
"""

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final, NoReturn
from urllib.parse import urlsplit

from orchestrator.core.errors import EgressRefused
from orchestrator.guards.addresses import Address, Network, forbidden, is_public, meanings

_HOST: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?\.?")
_NUMBER: Final = re.compile(r"(?:0[xX][0-9a-fA-F]*|[0-9]+)")
_BEGINNING: Final = re.compile(r"https?://[^/?#]", re.IGNORECASE)
_BRACKETED: Final = re.compile(r"\[[^\[\]]*\](?::[0-9]*)?")
_USER: Final = re.compile(r"(?:^|(?<=/))[^/]*@")
_UGLY: Final = re.compile(r"[\x00-\x20\x7f\\]|[^\x00-\x7f]")
_NUMBERS: Final = re.compile(r"[0-9.*?]*[0-9][0-9.*?]*|.*:.*")
_HOST_MAX, _LABEL_MAX = 253, 63
_SHOWN: Final = 200


class EgressGuard:
    """The Egress rules of one server.

    `loopback` says that the server itself is reachable from this machine only, so agents beside
    it are natural. `allow` widens the rules: `loopback`, networks (`10.1.0.0/16`) and host
    patterns (`*.corp.example`; one of numbers, `10.1.*`, is compared with the address, which no
    name can feign); what is never allowed stays so.
    """

    def __init__(self, allow: Sequence[str] = (), *, loopback: bool = False) -> None:
        words = [word.strip().lower().rstrip(".") for word in allow]
        self._loopback = loopback or "loopback" in words
        found = [(word, _network(word)) for word in words if word != "loopback"]
        patterns = [word for word, network in found if network is None]
        self._networks = tuple(network for _, network in found if network is not None)
        self._addresses = tuple(word for word in patterns if _NUMBERS.fullmatch(word))
        self._hosts = tuple(word for word in patterns if not _NUMBERS.fullmatch(word))

    def check(self, url: str, *, operator: bool) -> None:
        """Raise EgressRefused for a URL whose form or literal address is forbidden."""
        written = _host_of(url)
        literal, host = _literal(written), written.rstrip(".")
        if literal is not None:
            self._judge(host, literal, operator=operator)
        elif host == "localhost" or host.endswith(".localhost"):
            self._judge(host, IPv4Address("127.0.0.1"), operator=operator)

    def judge(self, host: str, address: str, *, operator: bool) -> None:
        """Raise EgressRefused for a resolved address that `host` must not lead to."""
        try:
            found = ip_address(address.partition("%")[0])
        except ValueError:
            _refuse(
                f"{host} leads to {address[:_SHOWN]!r}, which is no address; correct the host, or "
                "what its name server says"
            )
        self._judge(host.lower().rstrip("."), found, operator=operator)

    def _judge(self, host: str, address: Address, *, operator: bool) -> None:
        for one in meanings(address):
            shown = host if host == str(one) else f"{host} ({one})"
            if what := forbidden(one):
                _refuse(
                    f"{shown} is {what}, which is never dialled, whatever EGRESS_ALLOW says; name "
                    "the address at which the other side itself listens"
                )
            if one.is_loopback:
                self._judge_loopback(shown)
            elif not (operator or is_public(one) or self._allowed(host, one)):
                _refuse(
                    f"{shown} is a private address, or reserved, and only an operator's URLs may "
                    "be private; name a public one, or add its network or host to EGRESS_ALLOW"
                )

    def _judge_loopback(self, shown: str) -> None:
        if not self._loopback:
            _refuse(
                f"{shown} is this server's own machine and the server listens to others; name "
                "another address, or set EGRESS_ALLOW=loopback if that is meant"
            )

    def _allowed(self, host: str, address: Address) -> bool:
        return (
            any(address in network for network in self._networks)
            or any(fnmatchcase(str(address), pattern) for pattern in self._addresses)
            or any(fnmatchcase(host, pattern) for pattern in self._hosts)
        )


def _host_of(url: str) -> str:
    """Return the host of a URL that every parser reads alike; anything else is refused.

    The sender parses the URL with a parser of its own, so what two parsers could read differently
    (backslashes, spaces, user names, percent signs in hosts) must not get that far.
    """
    shown = repr(_USER.sub("…@", url)[:_SHOWN])
    if _UGLY.search(url):
        _refuse(
            f"{shown} holds a space, backslash, control or non-ASCII character; "
            "percent-encode it, in a host write the xn-- form"
        )
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname or ""
    except ValueError as error:
        _refuse(f"{shown} is not a URL ({error}); write it as http://host:port/path")
    if not _BEGINNING.match(url):
        _refuse(f"{shown} is no web address; write http:// or https:// and a host before the rest")
    if "@" in parts.netloc:
        _refuse(
            "a URL must not carry a user name or password; take them out and register the secret "
            "as `auth`"
        )
    if port == 0:
        _refuse(f"{shown} names port 0, where nobody listens; name one from 1 to 65535")
    if not parts.netloc.startswith("["):
        return _named(host, shown)
    # Older Pythons let text stand behind the bracket, and other parsers dial that.
    if not _BRACKETED.fullmatch(parts.netloc):
        _refuse(
            f"{shown} has something other than a port behind its brackets; write it as "
            "http://[address]:port/path"
        )
    return _bracketed(host, shown)


def _named(host: str, shown: str) -> str:
    labels = host.rstrip(".").split(".")
    if not _HOST.fullmatch(host) or not all(0 < len(label) <= _LABEL_MAX for label in labels):
        _refuse(
            f"{shown} names a host that is no host name; write labels of up to {_LABEL_MAX} "
            "letters, digits and hyphens with a dot between them"
        )
    if len(host) > _HOST_MAX:
        _refuse(f"{shown} names a host of over {_HOST_MAX} characters; write a shorter one")
    return host


def _bracketed(host: str, shown: str) -> str:
    if "%" in host:
        _refuse(
            f"{shown} names a network interface in its address, which is never dialled; name an "
            "address that needs none"
        )
    try:
        return str(IPv6Address(host))
    except ValueError:
        _refuse(
            f"{shown} names no IPv6 address between its brackets; write one as in [2001:db8::7]"
        )


def _literal(host: str) -> Address | None:
    """Return the address that `host` writes out, None for a name.

    What ends in a number is an address to a browser, and to a resolver often too (WHATWG URL,
    "ends in a number"); only the four plain decimal numbers are taken.
    """
    if ":" in host:
        return IPv6Address(host)
    if not _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]):
        return None
    try:
        return IPv4Address(host)
    except ValueError:
        _refuse(
            f"{host[:_SHOWN]} is an odd way to write an address; write four decimal numbers as in "
            "192.0.2.7, without a dot behind them"
        )


def _network(word: str) -> Network | None:
    try:
        return ip_network(word, strict=False)
    except ValueError:
        return None


def _refuse(message: str) -> NoReturn:
    raise EgressRefused(message)
