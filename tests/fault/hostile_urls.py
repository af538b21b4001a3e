"""URLs that want to be dialled and must not be, by what forbids them, and the names they use."""

from ipaddress import IPv6Address
from typing import Final, Literal, NamedTuple, TypeAlias

Why: TypeAlias = Literal["form", "never", "loopback", "private"]

PUBLIC: Final = ("93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c")
"""The addresses that stand for the public internet; everything else is forbidden ground."""
LONG: Final = "a" * 63


class Hostile(NamedTuple):
    """A URL and what forbids it."""

    url: str
    why: Why

    def __str__(self) -> str:
        return f"{self.why} {self.url[:80]}"


BOOK: Final[dict[str, list[str]]] = {
    "public.example": [PUBLIC[0]],
    "both.example": list(PUBLIC),
    # what an attacker's name server may say
    "metadata.example": ["169.254.169.254"],
    "chain.example": ["chain-1.example"],
    "chain-1.example": ["chain-2.example"],
    "chain-2.example": ["metadata.example"],
    "mapped.example": ["::ffff:169.254.169.254"],
    "nat64.example": ["64:ff9b::a9fe:a9fe"],
    "zone.example": ["fe80::1%eth0"],
    "zero.example": ["0.0.0.0"],  # noqa: S104  # an answer, nothing that is bound
    "multicast.example": ["224.0.0.251", "ff02::fb"],
    "self.example": ["127.0.0.1"],
    "self6.example": ["::1"],
    "self-mapped.example": ["::ffff:127.0.0.1"],
    "self-chain.example": ["self.example"],
    "127.0.0.1.nip.example": ["127.0.0.1"],
    "xn--bcher-kva.example": ["127.0.0.1"],
    "intranet.example": ["10.0.0.7"],
    "intranet6.example": ["fd00::7"],
    "intranet-chain.example": ["intranet.example"],
    "intranets.example": ["192.168.0.7", "172.16.0.7", "fd00::7"],
    "carrier.example": ["100.64.0.7"],
    "6to4.example": ["2002:a00:7::1"],
    # what the clouds and the systems call things
    "metadata.google.internal": ["169.254.169.254"],
    "metadata.goog": ["169.254.169.254", "fd20:ce::254"],
    "metadata": ["169.254.169.254"],
    "instance-data": ["169.254.169.254"],
    "instance-data.ec2.internal": ["fd00:ec2::254"],
    "metadata.tencentyun.com": ["169.254.0.23"],
    "100-100-100-200.example": ["100.100.100.200"],
    "localhost": ["::1", "127.0.0.1"],
    "a.b.localhost": ["127.0.0.1"],
    "localhost.localdomain": ["127.0.0.1"],
    "localhost6": ["::1"],
    "ip6-localhost": ["::1"],
    "ip6-loopback": ["::1"],
    "kubernetes.default.svc": ["10.96.0.1"],
    "host.docker.internal": ["192.168.65.254"],
}


def _all(why: Why, *urls: str) -> tuple[Hostile, ...]:
    return tuple(Hostile(url, why) for url in urls)


def _in_site_nat64(a: int, b: int, c: int, d: int) -> tuple[str, ...]:
    """Return an address as each length of a prefix of 64:ff9b:1::/48 embeds it (RFC 6052 §2.2)."""
    prefix, value = 0x64FF9B0001 << 80, int.from_bytes((a, b, c, d), "big")
    high, low = value >> 16, value & 0xFFFF
    return (
        str(IPv6Address(prefix | high << 64 | low << 40 | 1)),
        str(IPv6Address(prefix | a << 64 | (value & 0xFF_FFFF) << 32 | 1)),
        str(IPv6Address(prefix | value << 24 | 1)),
        str(IPv6Address(prefix | value)),
    )


NUMBERS: Final = _all(
    "form",
    # decimal, octal, hexadecimal, short and mixed
    "http://2130706433/", "http://017700000001/", "http://0x7f000001/", "http://0X7F000001:80/",
    "http://127.1/", "http://127.0.1/", "http://127.0x1/", "http://0x7f.1/", "http://0177.1/",
    "http://0177.0.0.1/", "http://0x7f.0x0.0x0.0x1/", "http://0x7f.0.0.1:8080/x", "http://127.0.0.01/",
    "http://127.0.00.1/", "http://127.0.0.0x1/", "http://127.0.0.1./", "http://127.1./", "http://0/",
    "http://0x/", "http://00000000/", "http://4294967295/", "http://4294967296/",
    "http://2852039166/latest/meta-data/", "http://0xa9fea9fe/", "http://025177524776/",
    "http://0xa9.0xfe.0xa9.0xfe/", "http://0251.0376.0251.0376/", "http://169.254.43518/",
    "http://169.16689662/", "http://169.254.169.254./", "http://425.510.425.510/",
    "http://167772167/", "http://10.7/", "http://012.0.0.7/", "http://0xa000007/", "http://1.2.3.4.5/",
    "http://127.0.0.1.0x1/", "http://a.127/",
)  # fmt: skip
FORMS: Final = _all(
    "form",
    # user names, backslashes, white space, other alphabets' digits and dots
    "http://public.example@127.0.0.1/", "http://public.example:80@169.254.169.254/",
    "http://127.0.0.1@public.example/", "http://u:p@10.0.0.7/", "http://@127.0.0.1/",
    "http://public.example%40127.0.0.1/", "http://127.0.0.1\\@public.example/",
    "http://public.example\\@127.0.0.1/", "http:\\\\127.0.0.1/", "http:/\\127.0.0.1/",
    "http://127.0.0.1\\.public.example/", "http://127.0.0.1\t/", "http://127.0.0\t.1/",
    "http://127.0.0.1\n/", "http://127.0.0.1\r\nHost: public.example/", " http://127.0.0.1/",
    "http:// 127.0.0.1/", "http://127.0.0.1 /", "ht\ntp://127.0.0.1/", "http://127.0.0.1\x00/",
    "http://127.0.0.1\x0b/", "http://１２７.０.０.１/", "http://127。0。0。1/", "http://127．0．0．1/",
    "http://①②⑦.⓪.⓪.①/", "http://١٢٧.٠.٠.١/", "http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ/", "http://LOCALHOſT/",
    "http://loc\u00adalhost/", "http://127.0.0.1\u200b/", "http://\ufeff127.0.0.1/",
    "http://bücher.example/", "http://public.example\u2044@127.0.0.1/", "http://127.0.0.1\uff0f/",
    # per cent, brackets, zones, separators
    "http://%31%32%37.0.0.1/", "http://127%2e0%2e0%2e1/", "http://%6cocalhost/", "http://127.0.0.1%00/",
    "http://127.0.0.1%2f@public.example/", "http://[::1%25lo]/", "http://[fe80::1%25eth0]/",
    "http://[::1%lo]/", "http://[127.0.0.1]/", "http://[::ffff:127.1]/", "http://[v1.127.0.0.1]/",
    "http://[v1.a:b]/", "http://[::1", "http://::1/", "http://::ffff:127.0.0.1/", "http://[::1]x/",
    "http://[::1]@public.example/", "http://public.example[::1]/", "http://[::1].public.example/",
    "http://127.0.0.1,public.example/", "http://127.0.0.1;public.example/",
    "http://public.example&@127.0.0.1/", "http://{127.0.0.1}/", "http://127.0.0.1:80:80/",
    "http://127.0.0.1:0/", "http://public.example:0/", "http://127.0.0.1:65616/",
    "http://127.0.0.1:-1/", "http://127.0.0.1:8 0/", "http://127.0.0.1:８０/", "http://.127.0.0.1/",
    "http://127..0.0.1/", "http://localhost../", "http://*.example/",
    f"http://{LONG}a.example/", f"http://{'.'.join([LONG] * 4)}.example/",
    # no web address
    "//127.0.0.1/", "http:127.0.0.1", "http:/127.0.0.1/", "http:///127.0.0.1/", "http://?@127.0.0.1/",
    "http://#@127.0.0.1/", "file:///etc/passwd", "gopher://127.0.0.1:6379/_INFO", "ftp://127.0.0.1/",
    "unix:///var/run/docker.sock", "http+unix://%2fvar%2frun%2fdocker.sock/", "data:text/plain,x",
    "ws://127.0.0.1/", "jar:http://127.0.0.1!/", "127.0.0.1", "localhost:8080", "",
)  # fmt: skip
NEVER: Final = _all(
    "never",
    "http://169.254.169.254/latest/meta-data/iam/security-credentials/", "http://169.254.170.2/v2/",
    "http://169.254.0.23/", "HTTP://169.254.169.254:80/x?y#z", "http://100.100.100.200/",
    "http://192.0.0.192/opc/v2/", "http://168.63.129.16/machine", "http://0.0.0.0/",
    "http://0.0.0.0:8080/", "http://0.127.0.1/", "http://255.255.255.255/", "http://224.0.0.1/",
    "http://[fd00:ec2::254]/", "http://[fd00:ec2::23]/", "http://[fd20:ce::254]/",
    "http://[fd00:42::42]/", "http://[fe80::1]/", "http://[fec0::1]/", "http://[::]/", "http://[::]:80/",
    "http://[ff02::1]/", "http://[::ffff:169.254.169.254]/", "http://[::FFFF:A9FE:A9FE]/",
    "http://[0:0:0:0:0:ffff:169.254.169.254]/", "http://[::169.254.169.254]/",
    "http://[::ffff:0:169.254.169.254]/", "http://[64:ff9b::169.254.169.254]/",
    "http://[2002:a9fe:a9fe::1]/", "http://[2001:0:a9fe:a9fe::f7f7:f7f7]/",
    "http://[2001:0:808:808::5601:5601]/", "http://[2606:4700::5efe:169.254.169.254]/",
    "http://[2606:4700::200:5efe:a9fe:a9fe]/", "http://[::ffff:0.0.0.0]/",
    *(f"http://[{text}]/" for text in _in_site_nat64(169, 254, 169, 254)),
    "http://metadata.google.internal/computeMetadata/v1/", "http://METADATA.Google.Internal./",
    "http://metadata.goog/", "http://metadata/", "http://instance-data/latest/",
    "http://instance-data.ec2.internal/", "http://metadata.tencentyun.com/",
    "http://100-100-100-200.example/", "http://metadata.example/", "https://metadata.example/",
    "http://chain.example/", "http://mapped.example/", "http://nat64.example/", "http://zone.example/",
    "http://zero.example/", "http://multicast.example/",
)  # fmt: skip
LOOPBACK: Final = _all(
    "loopback",
    "http://127.0.0.1/", "http://127.0.0.1:6379/", "https://127.0.0.1/", "http://127.9.9.9/",
    "http://[::1]/", "http://[0:0:0:0:0:0:0:1]:80/", "http://[0000::0001]/",
    "http://[::ffff:127.0.0.1]/", "http://[::ffff:7f00:1]/", "http://[::127.0.0.1]/",
    "http://[::ffff:0:127.0.0.1]/", "http://[64:ff9b::7f00:1]/", "http://[2002:7f00:1::1]/",
    "http://[2001:0:808:808::80ff:fffe]/", "http://[2606:4700::5efe:7f00:1]/",
    *(f"http://[{text}]/" for text in _in_site_nat64(127, 0, 0, 1)),
    "http://localhost/", "http://LocalHost:8080/", "http://localhost./", "http://a.b.localhost/",
    "http://localhost?@public.example/", "http://localhost#@public.example/",
    "http://127.0.0.1?.public.example/", "http://127.0.0.1#.public.example/",
    "http://localhost.localdomain/", "http://localhost6/", "http://ip6-localhost/",
    "http://ip6-loopback/", "http://self.example/", "http://SELF.example./", "http://self6.example/",
    "http://self-mapped.example/", "http://self-chain.example/", "http://127.0.0.1.nip.example/",
    "http://xn--bcher-kva.example/",
)  # fmt: skip
PRIVATE: Final = _all(
    "private",
    "http://10.0.0.7/", "http://10.0.0.7:9200/_all", "http://172.16.0.7/", "http://172.31.255.254/",
    "http://192.168.0.7/", "http://100.64.0.7/", "http://198.18.0.1/", "http://192.0.2.7/",
    "http://192.0.0.7/", "http://192.88.99.1/", "http://[fd00::7]/", "http://[fc00::7]/",
    "http://[::ffff:10.0.0.7]/", "http://[::10.0.0.7]/", "http://[::ffff:0:a00:7]/",
    "http://[64:ff9b::10.0.0.7]/", "http://[2002:a00:7::1]/", "http://[2001:0:a00:7::f7f7:f7f7]/",
    "http://[2606:4700::5efe:10.0.0.7]/", "http://[2001:db8::7]/", "http://[3fff::7]/",
    "http://[100::7]/", "http://[5f00::7]/", "http://[4000::7]/",
    *(f"http://[{text}]/" for text in _in_site_nat64(10, 0, 0, 7)),
    "http://intranet.example/", "http://INTRANET.example.:80/", "http://intranet6.example/",
    "http://intranet-chain.example/", "http://intranets.example/", "http://carrier.example/",
    "http://6to4.example/", "http://kubernetes.default.svc/", "http://host.docker.internal/",
)  # fmt: skip
HOSTILE: Final = (*NUMBERS, *FORMS, *NEVER, *LOOPBACK, *PRIVATE)
TRICKS: Final = (
    "http://public.example/?@127.0.0.1/", "http://public.example?@127.0.0.1/",
    "http://public.example/#@127.0.0.1/", "http://public.example#@169.254.169.254",
    "http://public.example/@127.0.0.1/", "http://public.example//127.0.0.1/",
    "http://public.example/http://169.254.169.254/", "http://public.example/?u=http://10.0.0.7/",
    "http://public.example/..%2f..%2f@127.0.0.1", "http://public.example/%0d%0aHost:%20127.0.0.1",
    "HTTP://PUBLIC.EXAMPLE./", "http://public.example:/", "http://93.184.215.14/",
    "http://[2606:2800:21f:cb07:6820:80da:af6b:8b2c]/", "http://both.example/",
)  # fmt: skip
"""They look as bad, but lead to the public internet, whatever stands behind the host."""
