"""How one variable is read: parsers, each raising ValueError, and the words for what they take."""

import re
from collections.abc import Callable, Mapping
from ipaddress import ip_address, ip_network
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from orchestrator.core.credentials import TOKEN_PREFIXES
from orchestrator.core.errors import SettingsInvalid
from orchestrator.core.secret import Secret
from orchestrator.core.values import NUMBER_MAX, is_number

_UNITS_MS: Final = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_SIZES: Final = {"": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}
_PORT_MAX: Final = 65_535
SHOWN: Final = 100
_HOST: Final = re.compile(r"[A-Za-z0-9._-]{1,253}")
USER: Final = re.compile(r"(?<=//)[^/]*@")
SECRET_KEY_MIN: Final = 32
ADMIN_KEY_MIN: Final = 32


class Variable(msgspec.Struct, frozen=True):
    """One environment variable: how it is read, what it is when unset, what it means."""

    name: str
    field: str
    parse: Callable[[str], Any]
    expected: str
    default: str
    text: str
    secret: bool = False

    @property
    def flag(self) -> str:
        """Return the command-line flag of the same name."""
        return "--" + self.name.lower().replace("_", "-")


def number(text: str) -> int:
    if not is_number(text):
        raise ValueError(text)
    return bounded(int(text))


def bounded(number: int) -> int:
    if number > NUMBER_MAX:
        raise ValueError(number)
    return number


def port(text: str) -> int:
    port = number(text)
    if port > _PORT_MAX:
        raise ValueError(text)
    return port


def host(text: str) -> str:
    if not _HOST.fullmatch(text):
        ip_address(text)
    return text


def positive(text: str) -> int:
    found = number(text)
    if found == 0:
        raise ValueError(text)
    return found


def clock(text: str) -> int | None:
    return None if text.lower() in ("off", "0") else positive(text)


def age(text: str) -> int | None:
    if text.lower() == "off":
        return None
    unit = _UNITS_MS.get(text[-1:])
    if unit is None:
        raise ValueError(text)
    return bounded(positive(text[:-1]) * unit)


def size(text: str) -> int:
    found = re.fullmatch(r"([0-9]+)\s*(|KB|MB|GB)", text.upper())
    if not found:
        raise ValueError(text)
    return bounded(number(found[1]) * _SIZES[found[2]])


def listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def secrets(text: str) -> tuple[Secret, ...]:
    keys = listed(text)
    if any(len(key) < SECRET_KEY_MIN for key in keys):
        raise ValueError
    return tuple(map(Secret, keys))


def admin_key(text: str) -> Secret:
    if len(text) < ADMIN_KEY_MIN or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError
    if text.startswith(TOKEN_PREFIXES):
        raise ValueError
    return Secret(text)


def networks(text: str) -> tuple[str, ...]:
    return tuple(str(ip_network(word, strict=False)) for word in listed(text))


def issuer(text: str) -> str:
    url(text)
    return text  # it is compared with the tokens' own word, so a slash at its end counts


def keys_url(text: str) -> str:
    url(text.partition("?")[0])
    return text


def origins(text: str) -> tuple[str, ...]:
    words = listed(text)
    for word in words:
        parts = urlsplit(url(word))
        if word != f"{parts.scheme}://{parts.netloc}":
            raise ValueError(word)
    return words


def prefix(text: str) -> str:
    prefix = text.rstrip("/")
    if prefix and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", prefix):
        raise ValueError(text)
    return prefix


def egress(text: str) -> tuple[str, ...]:
    words = listed(text)
    for word in words:
        if "/" in word:
            ip_network(word, strict=False)
        elif not re.fullmatch(r"[A-Za-z0-9.*?_:-]+", word):
            raise ValueError(word)
    return words


def url(text: str) -> str:
    parts = urlsplit(text)
    port = parts.port  # raises ValueError beyond 65535
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError(text)
    if parts.query or parts.fragment or not text.isprintable() or " " in text:
        raise ValueError(text)
    return text.rstrip("/")


def address_or_off(text: str) -> str | None:
    return None if text.lower() in ("", "off") else url(text)


def choice(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError(text)
        return text.lower()

    return parse


OPTIONAL: Final = (str, url, host, admin_key, issuer, keys_url)
"""Parsers of variables that may be unset; then the value is None."""
UP_TO: Final = f"up to {NUMBER_MAX}"
MS: Final = f"a number of milliseconds above 0, {UP_TO}"
OFF_MS: Final = f"a number of milliseconds {UP_TO}, or off"
AGE: Final = f"an age such as 30d, 12h, 30m or 90s ({UP_TO} milliseconds), or off"
BYTES: Final = f"a number of bytes such as 64MB, {UP_TO} bytes"
HTTP: Final = "a URL such as http://localhost:8080"


def read(variable: Variable, around: Mapping[str, str]) -> Any:
    """Return a variable's value; raises SettingsInvalid naming it and what was expected."""
    text = around.get(variable.name)
    if text is None or (not text and variable.name != "INGRESS_URL"):
        text = variable.default
        if not text and variable.parse in OPTIONAL:
            return None
    try:
        text.encode()  # what is no text arrives as unpaired surrogates
        return variable.parse(text.strip())
    except ValueError:
        said = "what it is now" if variable.secret else shown(text)
        raise SettingsInvalid(f"{variable.name} must be {variable.expected}, not {said}") from None


def shown(text: str) -> str:
    """Return a value as a message may have it: URLs without their user and password."""
    told = USER.sub("…@", text)
    return repr(told if len(told) <= SHOWN else told[:SHOWN] + "…")
