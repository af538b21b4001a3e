"""Identifiers: a prefix, a time-sortable body with 80 random bits, and the virtual shard.

`run_` + 10 base32 characters of milliseconds + 16 of noise + 2 of shard. The alphabet is
Crockford's: it sorts like the numbers it stands for. Time and noise are arguments.
"""

from hashlib import blake2b
from typing import Final

ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"
NOISE_BYTES: Final = 10
BODY_LENGTH: Final = 28

_PAIRS: Final = tuple(a + b for a in ALPHABET for b in ALPHABET)
_PAIR_INDEX: Final = {pair: index for index, pair in enumerate(_PAIRS)}


def mint(prefix: str, ts: int, noise: bytes, shard: str) -> str:
    """Return a new id from milliseconds UTC, 10 random bytes and a shard of 2 characters."""
    bits = (ts << 80) | int.from_bytes(noise, "big")
    pairs = (_PAIRS[(bits >> shift) & 1023] for shift in range(120, -1, -10))
    return f"{prefix}_{''.join(pairs)}{shard}"


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
