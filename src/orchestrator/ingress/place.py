"""How far a device has come in a session, as the cursor that it brings back, also elsewhere."""

import binascii
import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import sha256
from typing import Final

import msgspec

from orchestrator.core.secret import Secret
from orchestrator.ingress.problems import Problem

START: Final = "start"
"""The cursor of a device that wants all that the session has."""
CURSOR_MAX: Final = 32 << 10
"""Characters of a cursor: a session with hundreds of open runs has a long one."""
SEQS_MAX: Final = 200
"""Runs that a cursor names; a device in a session with more open ones says `last_seq`."""
_MAC_BYTES: Final = 16


class Place(msgspec.Struct, frozen=True, omit_defaults=True):
    """A place in the log of a session.

    `seqs` says how far each run is delivered that goes on; of the others those up to `newest`,
    accepted at `newest_at` (milliseconds UTC), are delivered whole, and later ones not at all.
    Without a `newest` everything is to come. `generations` says of which generation of a run's log
    its seq is, where that is not the first.
    """

    seqs: dict[str, int] = {}
    newest: str | None = None
    newest_at: int = 0
    generations: dict[str, int] = {}


class Cursors:
    """Writes places as cursors and reads them; one that was changed on the way is refused.

    A cursor is good for its session alone. That of a session's `creator`, who came with the shared
    key, also proves that: the key alone opens no session. Every ingress with the same API_KEY
    takes it.
    """

    def __init__(self, key: Secret | None) -> None:
        text = key.reveal() if key is not None else ""
        self._key = sha256(b"orchestrator ingress cursor\0" + text.encode()).digest()

    def write(self, session_id: str, place: Place, *, creator: bool = False) -> str | None:
        """Return the cursor of a place; None where it would be too long to be sent along."""
        if len(place.seqs) > SEQS_MAX:
            return None
        body = msgspec.json.encode(place)
        mac = self._mac(session_id, body, creator=creator)
        return urlsafe_b64encode(mac + body).rstrip(b"=").decode()

    def read(self, session_id: str, text: str) -> tuple[Place, bool]:
        """Return the place of a cursor and whether it is the creator's; raises Problem."""
        if text == START:
            return Place(), False
        try:
            raw = urlsafe_b64decode(text[:CURSOR_MAX] + "=" * (-len(text) % 4))
            mac, body = raw[:_MAC_BYTES], raw[_MAC_BYTES:]
            for creator in (False, True):
                if hmac.compare_digest(mac, self._mac(session_id, body, creator=creator)):
                    return msgspec.json.decode(body, type=Place), creator
        except (msgspec.MsgspecError, binascii.Error, ValueError):
            pass
        raise Problem(
            "invalid_request",
            "the cursor is not one of this session; leave it out to begin with what comes now",
        )

    def _mac(self, session_id: str, body: bytes, *, creator: bool) -> bytes:
        who = b"creator" if creator else b"reader"
        told = b"%b\0%b\0%b" % (who, session_id.encode(), body)
        return hmac.digest(self._key, told, "sha256")[:_MAC_BYTES]
