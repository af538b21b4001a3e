"""JSON as others write it: what msgspec would trip over is mended, or refused with a reason."""

import re
from itertools import accumulate
from typing import Any, Final, TypeVar, overload

import msgspec

NESTING_MAX: Final = 256
"""How deep a value may nest: what is decoded here can be encoded at any depth of the stack."""

_REASON: Final = 200
# An unclosed string counts to the end, so that no byte is looked at twice.
_STRING: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_STEPS: Final = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_OTHERS: Final = bytes(set(range(256)) - _STEPS.keys())
_HIGH, _LOW = rb"\\u[dD][89abAB][0-9a-fA-F]{2}", rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
# An even number of backslashes before the escape: with an odd one it would be text.
_SURROGATE: Final = re.compile(rb"(?<!\\)((?:\\\\)*+)(?:(%b%b)|%b|%b)" % (_HIGH, _LOW, _HIGH, _LOW))

T = TypeVar("T")


class MalformedJSON(msgspec.DecodeError):
    """The text is not JSON, not of the wanted type, or nested too deep; says where it can."""


@overload
def decode(raw: bytes | str) -> Any: ...
@overload
def decode(raw: bytes | str, type: type[T]) -> T: ...
def decode(raw: bytes | str, type: Any = Any) -> Any:  # noqa: A002  # msgspec's name for it
    """Return the value of a JSON text; unpaired surrogate escapes in it are U+FFFD.

    Raises MalformedJSON, a msgspec.DecodeError and ValueError.
    """
    try:
        text = clean_surrogates(raw.encode() if isinstance(raw, str) else raw)
        _check_nesting(text)
        return msgspec.json.decode(text, type=type)
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise MalformedJSON(f"the text is not valid UTF-8 ({error.reason})") from error
    except msgspec.DecodeError as error:
        raise MalformedJSON(_reason(error, len(raw))) from error
    except RecursionError as error:
        raise MalformedJSON("the value is nested too deep to be decoded here") from error


def clean_surrogates(raw: bytes) -> bytes:
    r"""Return a JSON text with unpaired surrogate escapes as `\ufffd`, all else untouched.

    JSON allows them (RFC 8259 §8.2), but they stand for no character and UTF-8 cannot carry them.
    """
    if b"\\ud" not in raw and b"\\uD" not in raw:
        return raw
    return _SURROGATE.sub(_paired, raw)


def valid_utf8(raw: bytes) -> bytes:
    """Return `raw` itself if it is UTF-8, else with U+FFFD in place of what is not.

    msgspec.Raw takes strings over unseen, so bytes that are kept as they came must pass here.
    """
    if raw.isascii():
        return raw
    try:
        raw.decode()
    except UnicodeDecodeError:
        return raw.decode("utf-8", "replace").encode()
    return raw


def canonical(value: Any) -> bytes:
    """Return a value as JSON with sorted keys: equal values give equal bytes.

    Numbers keep their kind, so 1 and 1.0 differ.
    """
    return msgspec.json.encode(value, order="deterministic")


def _paired(found: re.Match[bytes]) -> bytes:
    return found[0] if found[2] else found[1] + rb"\ufffd"


def _check_nesting(text: bytes) -> None:
    if text.count(b"[") + text.count(b"{") <= NESTING_MAX:
        return
    brackets = _STRING.sub(b"", text).translate(None, _OTHERS)
    if max(accumulate(map(_STEPS.__getitem__, brackets)), default=0) > NESTING_MAX:
        raise MalformedJSON(f"the value is nested over {NESTING_MAX} deep")


def _reason(error: msgspec.DecodeError, size: int) -> str:
    reason = str(error)[:_REASON]
    return f"{reason} (byte {size})" if reason.endswith("truncated") else reason
