"""Settings: the only file that reads the environment, and the one table that says what is read."""

import os
import re
from collections.abc import Callable, Mapping
from ipaddress import ip_address, ip_network
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from orchestrator.core.errors import DatabaseRefused, SettingsInvalid
from orchestrator.core.values import NUMBER_MAX, is_number
from orchestrator.stores.sqlite import locate

_UNITS_MS: Final = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_SIZES: Final = {"": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}
_PORT_MAX: Final = 65_535
_SHOWN: Final = 100
_HOST: Final = re.compile(r"[A-Za-z0-9._-]{1,253}")
LEVELS: Final = ("debug", "info", "warn", "warning", "error")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the server was told; `http_host` None means both loopback addresses."""

    http_port: int
    http_host: str | None
    database_url: str
    durability: str
    ingress_url: str | None
    agent_timeout_ms: int
    agent_first_byte_timeout_ms: int | None
    agent_idle_timeout_ms: int | None
    run_max_ms: int
    max_open_runs: int
    max_run_bytes: int
    min_free_disk: int
    retention_runs_ms: int | None
    retention_deltas_ms: int | None
    drain_timeout_ms: int
    keep_alive_ms: int
    auth_mode: str
    public_url: str
    agent_base_url: str
    egress_allow: tuple[str, ...]
    secret_keys: tuple[str, ...]
    secret_key_file: str
    log_level: str

    @property
    def loopback(self) -> bool:
        """Return whether only programs of this machine can reach the server."""
        return self.http_host is None or is_loopback(self.http_host)

    def at(self, port: int) -> "Settings":
        """Return the settings of a server that was given a port by the system."""
        old, new = _address(self.http_host, self.http_port), _address(self.http_host, port)
        return msgspec.structs.replace(
            self,
            http_port=port,
            public_url=new if self.public_url == old else self.public_url,
            agent_base_url=new if self.agent_base_url == old else self.agent_base_url,
        )


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


def _text(text: str) -> str:
    return text


def _number(text: str) -> int:
    if not is_number(text):
        raise ValueError(text)
    return _bounded(int(text))


def _bounded(number: int) -> int:
    if number > NUMBER_MAX:
        raise ValueError(number)
    return number


def _port(text: str) -> int:
    port = _number(text)
    if port > _PORT_MAX:
        raise ValueError(text)
    return port


def _host(text: str) -> str:
    if not _HOST.fullmatch(text):
        ip_address(text)
    return text


def _positive(text: str) -> int:
    number = _number(text)
    if number == 0:
        raise ValueError(text)
    return number


def _clock(text: str) -> int | None:
    return None if text.lower() in ("off", "0") else _positive(text)


def _age(text: str) -> int | None:
    if text.lower() == "off":
        return None
    unit = _UNITS_MS.get(text[-1:])
    if unit is None:
        raise ValueError(text)
    return _bounded(_positive(text[:-1]) * unit)


def _size(text: str) -> int:
    found = re.fullmatch(r"([0-9]+)\s*(|KB|MB|GB)", text.upper())
    if not found:
        raise ValueError(text)
    return _bounded(_number(found[1]) * _SIZES[found[2]])


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _egress(text: str) -> tuple[str, ...]:
    words = _list(text)
    for word in words:
        if "/" in word:
            ip_network(word, strict=False)
        elif not re.fullmatch(r"[A-Za-z0-9.*?_:-]+", word):
            raise ValueError(word)
    return words


def _url(text: str) -> str:
    parts = urlsplit(text)
    port = parts.port  # raises ValueError beyond 65535
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError(text)
    if parts.query or parts.fragment or not text.isprintable() or " " in text:
        raise ValueError(text)
    return text.rstrip("/")


def _ingress(text: str) -> str | None:
    return None if text.lower() in ("", "off") else _url(text)


def _choice(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError(text)
        return text.lower()

    return parse


_UP_TO: Final = f"up to {NUMBER_MAX}"
_MS: Final = f"a number of milliseconds above 0, {_UP_TO}"
_OFF_MS: Final = f"a number of milliseconds {_UP_TO}, or off"
_AGE: Final = f"an age such as 30d, 12h, 30m or 90s ({_UP_TO} milliseconds), or off"
_BYTES: Final = f"a number of bytes such as 64MB, {_UP_TO} bytes"
_HTTP: Final = "a URL such as http://localhost:8080"

VARIABLES: Final[tuple[Variable, ...]] = (
    Variable("HTTP_PORT", "http_port", _port, "a port from 0 to 65535", "8080",
             "where the server listens; 0 takes any free port"),
    Variable("HTTP_HOST", "http_host", _host, "an address of this machine", "",
             "unset: both loopback addresses; any other address needs `AUTH_MODE=off` until there "
             "are keys"),
    Variable("DATABASE_URL", "database_url", _text, "file:PATH or sqlite:///PATH",
             "file:orchestrator.db?cache=shared&mode=rwc",
             "the database, relative to the folder the command was called in; of the parameters "
             "only `mode=rwc|rw|ro` counts, and a server needs one that writes"),
    Variable("DURABILITY", "durability", _choice("balanced", "full"), "balanced or full",
             "balanced",
             "`balanced`: changes of a run's state are on disk before anybody sees them, an agent's"
             " words within a second; `full`: the words too"),
    Variable("INGRESS_URL", "ingress_url", _ingress, _HTTP + ", empty or off",
             "http://localhost:8090", "where live events are pushed; empty or `off`: no push"),
    Variable("AGENT_TIMEOUT_MS", "agent_timeout_ms", _positive, _MS, "300000",
             "the longest time of one invocation of an agent"),
    Variable("AGENT_FIRST_BYTE_TIMEOUT_MS", "agent_first_byte_timeout_ms", _clock, _OFF_MS, "off",
             "the longest silence before an agent's first byte"),
    Variable("AGENT_IDLE_TIMEOUT_MS", "agent_idle_timeout_ms", _clock, _OFF_MS, "off",
             "the longest silence between an agent's bytes; comments count as bytes"),
    Variable("RUN_MAX_MS", "run_max_ms", _positive, _MS, "86400000",
             "the longest life of a run; it never stands still"),
    Variable("MAX_OPEN_RUNS", "max_open_runs", _positive, f"a number above 0, {_UP_TO}", "10000",
             "how many runs may be open; more are answered 429 `queue_full`"),
    Variable("MAX_RUN_BYTES", "max_run_bytes", _size, _BYTES, "64MB",
             "how many bytes of events one invocation may bring"),
    Variable("MIN_FREE_DISK", "min_free_disk", _size, _BYTES, "256MB",
             "with less free disk no new runs are taken; 0 switches it off"),
    Variable("RETENTION_RUNS", "retention_runs_ms", _age, _AGE, "off",
             "ended runs older than this go, with their log and messages"),
    Variable("RETENTION_DELTAS", "retention_deltas_ms", _age, _AGE, "off",
             "the logs of ended runs older than this lose their deltas, nothing else"),
    Variable("DRAIN_TIMEOUT_MS", "drain_timeout_ms", _positive, _MS, "30000",
             "how long runs in flight may go on after SIGTERM"),
    Variable("KEEP_ALIVE_MS", "keep_alive_ms", _positive, _MS, "15000",
             "how often a silent stream gets a comment"),
    Variable("AUTH_MODE", "auth_mode", _choice("auto", "off"), "auto or off", "auto",
             "`auto`: without keys only this machine is served; `off`: everybody who can reach it"),
    Variable("PUBLIC_URL", "public_url", _url, _HTTP, "",
             "the address by which callers reach the server: its host is taken in `Host` and "
             "`Origin`, and agents are told it; unset: the server's own address"),
    Variable("AGENT_BASE_URL", "agent_base_url", _url, _HTTP, "",
             "what agents are told to call back; unset: `PUBLIC_URL`"),
    Variable("EGRESS_ALLOW", "egress_allow", _egress,
             "a comma list of `loopback`, networks such as 10.0.0.0/8 and host patterns", "",
             "what else may be dialled: `loopback`, networks such as 10.0.0.0/8, host patterns"),
    Variable("SECRET_KEY", "secret_keys", _list, "a comma list of keys", "",
             "encrypts credentials; the first encrypts, all decrypt", secret=True),
    Variable("SECRET_KEY_FILE", "secret_key_file", _text, "a path", "",
             "where the key is when `SECRET_KEY` is unset; unset: beside the database, `.key`"),
    Variable("LOG_LEVEL", "log_level", _choice(*LEVELS), ", ".join(LEVELS), "info",
             "which log lines are written to standard error"),
)  # fmt: skip


NOT_READ: Final = {
    "BUS_URL": "bus but its own",
    "ADMIN_KEY": "keys: it serves its own machine, or everybody with AUTH_MODE=off",
    "ADMIN_KEY_FILE": "keys: it serves its own machine, or everybody with AUTH_MODE=off",
    "TRUSTED_PROXIES": "trust in what proxies say of their callers",
    "BASE_PATH": "prefix for its paths",
    "CORS_ORIGINS": "pages of other origins among its callers",
    "LLM_ROUTER_URL": "LLM proxy",
    "LITELLM_URL": "LLM proxy",
    "LLM_API_KEY": "LLM proxy",
    "LITELLM_API_KEY": "LLM proxy",
    "LLM_CONFIG": "LLM proxy",
    "TOOL_TIMEOUT_MS": "tools",
    "APPROVAL_TIMEOUT_MS": "approvals",
}
"""Variables of the contract that mean something this version lacks, and what that is."""


def load(
    env: Mapping[str, str] | None = None, flags: Mapping[str, str | None] | None = None
) -> Settings:
    """Return the settings; a flag (by variable name) wins over the environment.

    An empty variable means unset, except INGRESS_URL. Raises SettingsInvalid naming the variable,
    what was found and what was expected.
    """
    around = os.environ if env is None else env
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    values = {v.field: _read(v, {**around, **given}) for v in VARIABLES}
    for name, missing in NOT_READ.items():
        if around.get(name):
            raise SettingsInvalid(f"{name} is set, and this version has no {missing}; unset it")
    return _completed(values)


def server_url(env: Mapping[str, str] | None = None) -> str:
    """Return the address that the commands call: ORCHESTRATOR_URL, or the local server's."""
    around = os.environ if env is None else env
    port = next(variable for variable in VARIABLES if variable.field == "http_port")
    return around.get("ORCHESTRATOR_URL") or f"http://localhost:{_read(port, around)}"


def _read(variable: Variable, around: Mapping[str, str]) -> Any:
    text = around.get(variable.name)
    if text is None or (not text and variable.name != "INGRESS_URL"):
        text = variable.default
        if not text and variable.parse in (_text, _url, _host):
            return None
    try:
        text.encode()  # what is no text arrives as unpaired surrogates
        return variable.parse(text.strip())
    except ValueError:
        shown = "a secret" if variable.secret else _shown(text)
        raise SettingsInvalid(f"{variable.name} must be {variable.expected}, not {shown}") from None


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")


def _completed(values: dict[str, Any]) -> Settings:
    host = values["http_host"]
    if host == "localhost":
        host = values["http_host"] = None
    if host and not is_loopback(host) and values["auth_mode"] == "auto":
        raise SettingsInvalid(
            f"HTTP_HOST={host} would let others call a server without keys; leave HTTP_HOST unset, "
            "or say with AUTH_MODE=off that this is meant"
        )
    public = values["public_url"] or _address(host, values["http_port"])
    try:
        path = locate(values["database_url"]).path
    except DatabaseRefused as error:
        raise SettingsInvalid(error.message) from error
    values["public_url"] = public
    values["agent_base_url"] = values["agent_base_url"] or public
    values["secret_key_file"] = values["secret_key_file"] or f"{path}.key"
    return Settings(**values)


def _address(host: str | None, port: int) -> str:
    name = "localhost" if host in (None, "0.0.0.0", "::") else host  # noqa: S104  # compared
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def is_loopback(host: str) -> bool:
    """Return whether an address is this machine's own."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def table() -> str:
    """Return docs/settings.md's table."""
    rows = [
        f"| `{v.name}` | {f'`{v.default}`' if v.default else 'unset'} | {_cell(v.text)} |"
        for v in VARIABLES
    ]
    return "\n".join(["| variable | default | meaning |", "|---|---|---|", *rows])


def not_read() -> str:
    """Return the variables that stop a start because this version lacks what they are for."""
    return ", ".join(f"`{name}`" for name in NOT_READ)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
