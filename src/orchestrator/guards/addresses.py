"""What an address is: which ones nobody dials, which are public, and which carry another inside.

Sources: the special-purpose registries of IANA (RFC 6890 and what it has gathered since), RFC 6052
and the clouds' own manuals. The lists stand here because Python's own grow with its releases.
"""

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Final, TypeAlias

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
_NAT64: Final = IPv6Network("64:ff9b::/96")  # RFC 6052
_SITE_NAT64: Final = IPv6Network("64:ff9b:1::/48")  # RFC 8215
_TRANSLATED: Final = IPv6Network("::ffff:0:0:0/96")  # stateless translation, RFC 2765
_COMPATIBLE: Final = IPv6Network("::/96")
_GLOBAL: Final = (IPv6Network("2000::/3"), _NAT64)
_SPECIAL: Final[tuple[Network, ...]] = tuple(
    ip_network(network)
    for network in (
        "192.0.0.0/24",  # protocol assignments
        "192.88.99.0/24",  # relays of 6to4
        "2001::/23",  # protocol assignments, Teredo among them
        "2002::/16",  # 6to4
        "2001:db8::/32",  # documentation
        "3fff::/20",  # documentation
    )
)
_MULTICAST: Final = 224
_ISATAP: Final = 0x0000_5EFE
_LOCAL_BITS: Final = 0xFDFF_FFFF


def forbidden(address: Address) -> str:
    """Return what an address is that nobody ever dials, "" for all others."""
    return next((what for network, what in _NEVER if address in network), "")


def is_public(address: Address) -> bool:
    """Return whether an address belongs to the public internet."""
    if not address.is_global or any(address in network for network in _SPECIAL):
        return False
    return isinstance(address, IPv4Address) or any(address in network for network in _GLOBAL)


def meanings(address: Address) -> Iterator[Address]:
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
    yield from _inside(address)


def _inside(address: IPv6Address) -> Iterator[IPv4Address]:
    bits = int(address)
    if address in _SITE_NAT64:
        yield from _site_nat64(bits)
    elif (
        address in _NAT64
        or address in _TRANSLATED
        or (address in _COMPATIBLE and not address.is_loopback)
        or bits >> 32 & _LOCAL_BITS == _ISATAP  # RFC 5214
    ):
        yield IPv4Address(bits & 0xFFFF_FFFF)


def _site_nat64(bits: int) -> Iterator[IPv4Address]:
    """Yield each address that RFC 6052 §2.2 may read, for nobody knows the length of the prefix.

    Where another length reads padding or a subnet, it mostly finds what no host is called.
    """
    last = bits & 0xFFFF_FFFF
    packed = bits >> 64 << 56 | bits & (1 << 56) - 1  # without the octet that is always zero
    found = {last, *(packed >> shift & 0xFFFF_FFFF for shift in (24, 32, 40))}
    hosts = {one for one in found if 0 < one >> 24 < _MULTICAST}
    yield from map(IPv4Address, sorted(hosts or {last}))
