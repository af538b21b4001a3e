"""How many requests a caller may make: limits, the buckets that meter them, and what answers say.

A bucket lets `n` requests through at once and one more each `window / n` seconds: the generic cell
rate algorithm (GCRA, ITU-T I.371) with a burst of `n`. So any stretch of `d` seconds sees at
most `n + d * n / window` of them, and a caller who has just been refused gets at most `n` in the
window that follows. All of it is whole numbers: a bucket that has run for years is still exact.
"""

import re
from typing import Final, NamedTuple

import msgspec

N_MAX: Final = 1_000_000
SIZE: Final = 10_000
DEFAULT: Final = "default"
NS: Final = 1_000_000_000

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_LETTERS: Final = {seconds: letter for letter, seconds in _UNITS.items()}
_TEXT: Final = re.compile(r"([1-9][0-9]{0,6})/([smhd])")
_PRINTABLE: Final = re.compile(r"[ -~]+")


class Limit(msgspec.Struct, frozen=True):
    """`n` requests per `window_s` seconds, which are a second, a minute, an hour or a day.

    Raises ValueError when `n` is not 1 to 1,000,000 or the window is another. `str` gives the text
    that `parse` takes.
    """

    n: int
    window_s: int

    def __post_init__(self) -> None:
        if not 1 <= self.n <= N_MAX:
            raise ValueError(f"a limit is 1 to {N_MAX} requests, not {self.n}")
        if self.window_s not in _LETTERS:
            raise ValueError(f"a limit's window is 1, 60, 3600 or 86400 s, not {self.window_s}")

    @classmethod
    def parse(cls, text: str) -> "Limit":
        """Return the limit that a text such as `600/m` means; raises ValueError with the rule."""
        found = _TEXT.fullmatch(text)
        if not found or int(found[1]) > N_MAX:
            raise ValueError(
                f"a limit is a whole number from 1 to {N_MAX} and a unit, s, m, h or d, "
                f"such as 600/m, not {text[:40]!r}"
            )
        return cls(int(found[1]), _UNITS[found[2]])

    def __str__(self) -> str:
        return f"{self.n}/{_LETTERS[self.window_s]}"


class Verdict(NamedTuple):
    """What a request was told.

    `remaining` requests would pass at once. `reset_s`, at least 1, is the time to spread them over:
    afterwards as many are there again, or one if there were none. `retry_after_s` is 0 for a
    request that passed, else the seconds after which one will pass.
    """

    allowed: bool
    remaining: int
    reset_s: int
    retry_after_s: int


class _Bucket(NamedTuple):
    """What is owed, in shares of a request (`limit.window_s * NS` make one), when last looked at.

    Each nanosecond pays back `limit.n` shares, so beyond the clock's reading nothing is rounded.
    """

    owed: int
    at_ns: int


class Limiter:
    """Buckets for many callers in one process, at most `size` of them.

    The bucket that was asked for the longest time ago goes first. One that nobody asked for during
    a whole window is full again, so losing it changes nothing. If more than `size` pairs of key and
    name are at work within one window, those who asked least start anew with `n` requests:
    `forgotten` counts them, and a number that grows says that `size` is too small.
    """

    def __init__(self, size: int = SIZE) -> None:
        self.forgotten = 0
        self._size = size
        self._buckets: dict[tuple[str, str, Limit], _Bucket] = {}

    def take(self, key: str, limit: Limit, now_s: float, name: str = DEFAULT) -> Verdict:
        """Let one request of `key` on the route or group `name` pass, or refuse it.

        `now_s` is monotonic seconds. A reading before the last one pays nothing back, and time
        goes on from there. A refused request costs nothing. Another limit under the same name has
        a bucket of its own, so a changed limit starts full. `key` is kept as it is: give the id
        of a key, not what a caller sent.
        """
        now_ns = int(now_s * NS)
        place = (key, name, limit)
        owed = _owed(self._buckets.pop(place, None), limit, now_ns)
        request = limit.window_s * NS
        allowed = owed <= (limit.n - 1) * request
        if allowed:
            owed += request
        if len(self._buckets) >= self._size:
            self._forget(now_ns)
        self._buckets[place] = _Bucket(owed, now_ns)
        return _verdict(limit, owed, allowed=allowed)

    def __len__(self) -> int:
        return len(self._buckets)

    def _forget(self, now_ns: int) -> None:
        oldest = next(iter(self._buckets))
        self.forgotten += _owed(self._buckets.pop(oldest), oldest[2], now_ns) > 0


def headers(name: str, limit: Limit, verdict: Verdict) -> dict[str, str]:
    """Return the answer's fields `RateLimit-Policy`, `RateLimit` and, when refused, `Retry-After`.

    Written as draft-ietf-httpapi-ratelimit-headers-11 (May 2026) has them, structured fields of
    RFC 9651: `"default";q=600;w=60` and `"default";r=599;t=60`. Its §8.5 asks that `r` in `t`
    seconds is no faster than the policy, and its §6 that `Retry-After` is not before the end of
    `t`; `reset_s` is both. Raises ValueError unless `name` is printable ASCII.
    """
    if not _PRINTABLE.fullmatch(name):
        raise ValueError(f"a limit's name in a header is printable ASCII, not {name[:40]!r}")
    quoted = '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
    fields = {
        "RateLimit-Policy": f"{quoted};q={limit.n};w={limit.window_s}",
        "RateLimit": f"{quoted};r={verdict.remaining};t={verdict.reset_s}",
    }
    if not verdict.allowed:
        fields["Retry-After"] = str(verdict.retry_after_s)
    return fields


def _owed(bucket: _Bucket | None, limit: Limit, now_ns: int) -> int:
    if bucket is None:
        return 0
    return max(0, bucket.owed - max(0, now_ns - bucket.at_ns) * limit.n)


def _verdict(limit: Limit, owed: int, *, allowed: bool) -> Verdict:
    request = limit.window_s * NS
    remaining = (limit.n * request - owed) // request
    if remaining:
        return Verdict(allowed, remaining, _ceil(remaining * limit.window_s, limit.n), 0)
    wait_s = _ceil(owed - (limit.n - 1) * request, limit.n * NS)
    return Verdict(allowed, 0, wait_s, 0 if allowed else wait_s)


def _ceil(a: int, b: int) -> int:
    return -(-a // b)
