"""Rules for what callers may write: names, session ids, roles, messages, labels, numbers."""

import re
from typing import Any, Final

from orchestrator.core.errors import InvalidRequest
from orchestrator.core.events import Content

NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,128}\Z")
SESSION_ID: Final = re.compile(r"[^/:\x00-\x1f\x7f-\x9f]{1,256}\Z")
ROLES: Final = ("user", "assistant", "system", "tool")
BUSY_KINDS: Final = ("enqueue", "reject", "interrupt", "parallel")
"""What may become of a message for a session that has a run."""
LABELS_MAX: Final = 32
LABEL_LENGTH: Final = 256
NUMBER_MAX: Final = 1 << 53
"""The bound of every count and every number of milliseconds: JSON's own, RFC 8259 §6."""
DIGITS_MAX: Final = 16
"""As many as NUMBER_MAX has."""


def name(value: str, field: str) -> str:
    """Return an agent's or tool's name as it is; raises InvalidRequest naming the rule."""
    if not NAME.match(value):
        raise InvalidRequest(
            f"{field} must be 1 to 128 characters of A-Z a-z 0-9 . _ -, not {value[:140]!r}"
        )
    return value


def session_id(value: str) -> str:
    """Return a session id as it is; raises InvalidRequest naming the rule."""
    if not SESSION_ID.match(value):
        raise InvalidRequest(
            "session_id must be 1 to 256 characters without '/', ':' and control characters, "
            f"not {value[:270]!r}"
        )
    return value


def content(value: Any, field: str = "input_message.content") -> Content:
    """Return a message's content: non-empty text, or a non-empty list of parts with a `type`."""
    if value is None or value in ("", []):
        raise InvalidRequest(f"{field} is required")
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(p, dict) and _is_part(p) for p in value):
        return value
    raise InvalidRequest(
        f'{field} must be a string or a list of parts such as {{"type":"text","text":"…"}}'
    )


def role(value: str, field: str) -> str:
    """Return who speaks; raises InvalidRequest naming the roles of a transcript."""
    if value not in ROLES:
        raise InvalidRequest(f"{field} must be one of {', '.join(ROLES)}")
    return value


def is_number(text: str, digits: int = DIGITS_MAX) -> bool:
    """Return whether a text is a whole number of up to `digits` plain digits.

    They are counted before anybody makes an int of them: thousands are no number for Python.
    """
    return text.isascii() and text.isdecimal() and len(text) <= digits


def positive(value: int | None, field: str) -> int | None:
    """Return a count or a number of milliseconds; raises InvalidRequest naming its bounds."""
    if value is not None and not 1 <= value <= NUMBER_MAX:
        raise InvalidRequest(f"{field} must be a whole number from 1 to {NUMBER_MAX}")
    return value


def labels(value: dict[str, str] | None) -> dict[str, str]:
    """Return a run's labels; raises InvalidRequest over 32 of them or 256 characters each."""
    found = value or {}
    if len(found) > LABELS_MAX:
        raise InvalidRequest(f"labels may have {LABELS_MAX} entries, not {len(found)}")
    for key, text in found.items():
        if max(len(key), len(text)) > LABEL_LENGTH:
            raise InvalidRequest(f"label {key[:40]!r} is over {LABEL_LENGTH} characters")
    return found


def text_of(value: Content) -> str:
    """Return the plain text of a message's content."""
    if isinstance(value, str):
        return value
    return "".join(str(part.get("text", "")) for part in value)


def _is_part(part: dict[str, Any]) -> bool:
    return isinstance(part.get("type"), str)
