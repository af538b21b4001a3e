"""Identifiers: a prefix, a time-sortable body with 80 random bits, and the virtual shard.

`run_` + 10 base32 characters of milliseconds + 16 of noise + 2 of shard. The alphabet is
Crockford's: it sorts like the numbers it stands for. Time and noise are arguments.
"""

from hashlib import blake2b
from typing import Final

ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"
NOISE_BYTES: Final = 16
"""Random bytes that an id is made of; each gives a character, so five of its bits count."""
BODY_LENGTH: Final = 28

_PAIRS: Final = tuple(a + b for a in ALPHABET for b in ALPHABET)
_PAIR_INDEX: Final = {pair: index for index, pair in enumerate(_PAIRS)}
_LETTERS: Final = bytes(ord(ALPHABET[byte & 31]) for byte in range(256))


def mint(prefix: str, ts: int, noise: bytes, shard: str) -> str:
    """Return a new id from milliseconds UTC, 16 random bytes and a shard of 2 characters."""
    return f"{prefix}_{stamp(ts)}{letters(noise)}{shard}"


def stamp(ts: int) -> str:
    """Return milliseconds UTC as 10 characters that sort like the number."""
    return (
        f"{_PAIRS[ts >> 40 & 1023]}{_PAIRS[ts >> 30 & 1023]}{_PAIRS[ts >> 20 & 1023]}"
        f"{_PAIRS[ts >> 10 & 1023]}{_PAIRS[ts & 1023]}"
    )


def letters(noise: bytes) -> str:
    """Return one character of the alphabet for each random byte."""
    return noise.translate(_LETTERS).decode()


def shard_of(tenant: str, session_id: str) -> str:
    """Return the virtual shard of a session: the first 10 bits of BLAKE2b, as two characters.

    Everything that belongs to a session carries it, so that all of it can live on one database.
    """
    digest = blake2b(f"{tenant}\0{session_id}".encode(), digest_size=2).digest()
    return _PAIRS[int.from_bytes(digest, "big") >> 6]


def minted_at(identifier: str) -> int:
    """Return the millisecond in which an id of ours was minted; ValueError for any other text."""
    body = identifier.rpartition("_")[2]
    if len(body) != BODY_LENGTH:
        raise ValueError(f"not an id of this system: {identifier!r}")
    try:
        digits = [_PAIR_INDEX[body[i : i + 2]] for i in range(0, 10, 2)]
    except KeyError:
        raise ValueError(f"not an id of this system: {identifier!r}") from None
    ts = 0
    for digit in digits:
        ts = (ts << 10) | digit
    return ts
