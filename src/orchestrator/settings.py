"""Settings: the only file that reads the environment, and the one table that says what is read."""

import os
import re
from collections.abc import Callable, Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from orchestrator.core.credentials import TOKEN_PREFIXES
from orchestrator.core.errors import DatabaseRefused, SettingsInvalid
from orchestrator.core.secret import Secret
from orchestrator.core.values import NUMBER_MAX, is_number
from orchestrator.stores.sqlite import locate

_UNITS_MS: Final = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_SIZES: Final = {"": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}
_PORT_MAX: Final = 65_535
_SHOWN: Final = 100
_HOST: Final = re.compile(r"[A-Za-z0-9._-]{1,253}")
_USER: Final = re.compile(r"(?<=//)[^/]*@")
ADMIN_KEY_MIN: Final = 32
LEVELS: Final = ("debug", "info", "warn", "warning", "error")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the server was told; `http_host` None means both loopback addresses."""

    http_port: int
    http_host: str | None
    database_url: str
    durability: str
    migrate: str
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
    admin_key: Secret | None
    oidc_issuer: str | None
    oidc_audience: tuple[str, ...]
    oidc_jwks_url: str | None
    oidc_role_claim: str
    oidc_tenant_claim: str
    oidc_person_claim: str
    public_url: str
    agent_base_url: str
    base_path: str
    trusted_proxies: tuple[str, ...]
    cors_origins: tuple[str, ...]
    egress_allow: tuple[str, ...]
    secret_keys: tuple[Secret, ...]
    secret_key_file: str
    log_level: str
    otlp_endpoint: str | None

    @property
    def loopback(self) -> bool:
        """Return whether only programs of this machine can reach the server."""
        return self.http_host is None or is_loopback(self.http_host)

    @property
    def postgres(self) -> bool:
        """Return whether the database is a PostgreSQL server's, which other servers may share."""
        return _is_postgres(self.database_url)

    @property
    def own_url(self) -> str:
        """Return the address at which this machine's commands reach the server."""
        return _under(_address(self.http_host, self.http_port), self.base_path)

    def at(self, port: int) -> "Settings":
        """Return the settings of a server that was given a port by the system."""
        old, new = (
            _under(_address(self.http_host, one), self.base_path) for one in (self.http_port, port)
        )
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


def _secrets(text: str) -> tuple[Secret, ...]:
    return tuple(map(Secret, _list(text)))


def _admin_key(text: str) -> Secret:
    if len(text) < ADMIN_KEY_MIN or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError
    if text.startswith(TOKEN_PREFIXES):
        raise ValueError
    return Secret(text)


def _networks(text: str) -> tuple[str, ...]:
    return tuple(str(ip_network(word, strict=False)) for word in _list(text))


def _issuer(text: str) -> str:
    _url(text)
    return text  # it is compared with the tokens' own word, so a slash at its end counts


def _keys_url(text: str) -> str:
    _url(text.partition("?")[0])
    return text


def _origins(text: str) -> tuple[str, ...]:
    words = _list(text)
    for word in words:
        parts = urlsplit(_url(word))
        if word != f"{parts.scheme}://{parts.netloc}":
            raise ValueError(word)
    return words


def _prefix(text: str) -> str:
    prefix = text.rstrip("/")
    if prefix and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", prefix):
        raise ValueError(text)
    return prefix


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


_OPTIONAL: Final = (str, _url, _host, _admin_key, _issuer, _keys_url)
"""Parsers of variables that may be unset; then the value is None."""
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
             "unset: both loopback addresses; any other address needs a key, or `AUTH_MODE=off`"),
    Variable("DATABASE_URL", "database_url", str,
             "file:PATH, sqlite:///PATH or postgresql://USER:PASSWORD@HOST/DATABASE",
             "file:orchestrator.db?cache=shared&mode=rwc",
             "the database: a file, relative to the folder the command was called in, of whose "
             "parameters only `mode=rwc|rw|ro` counts, and a server needs one that writes; or "
             "PostgreSQL 15 or newer, which several servers may share"),
    Variable("DURABILITY", "durability", _choice("balanced", "full"), "balanced or full",
             "balanced",
             "`balanced`: changes of a run's state are on disk before anybody sees them, an agent's"
             " words within a second; `full`: the words too"),
    Variable("MIGRATE", "migrate", _choice("start", "never"), "start or never", "start",
             "`start`: a start brings the database's schema up to date, after a copy of a file; "
             "`never`: only `./orchestrator migrate up` does; a start that needs it is refused"),
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
    Variable("AUTH_MODE", "auth_mode", _choice("auto", "keys", "off"), "auto, keys or off", "auto",
             "`auto`: without any key only this machine is served; `keys`: nobody without a key; "
             "`off`: everybody who can reach it"),
    Variable("ADMIN_KEY", "admin_key", _admin_key,
             f"{ADMIN_KEY_MIN} or more printable characters without spaces", "",
             "a bearer that may do everything for every tenant; it makes the first key",
             secret=True),
    Variable("ADMIN_KEY_FILE", "admin_key_file", str, "a path", "",
             "where the key is when `ADMIN_KEY` is unset"),
    Variable("OIDC_ISSUER", "oidc_issuer", _issuer, _HTTP, "",
             "the identity provider whose bearer tokens are taken; unset: none are"),
    Variable("OIDC_AUDIENCE", "oidc_audience", _list, "a comma list", "",
             "whom such a token must be for; needed with `OIDC_ISSUER`"),
    Variable("OIDC_JWKS_URL", "oidc_jwks_url", _keys_url, _HTTP, "",
             "where the provider's keys are; unset: what its discovery document says"),
    Variable("OIDC_ROLE_CLAIM", "oidc_role_claim", str, "the name of a claim",
             "orchestrator_role",
             "the claim that holds a role, or a list of them; dots lead into objects"),
    Variable("OIDC_TENANT_CLAIM", "oidc_tenant_claim", str, "the name of a claim",
             "orchestrator_tenant", "the claim that holds the tenant; absent means `default`"),
    Variable("OIDC_PERSON_CLAIM", "oidc_person_claim", str, "the name of a claim", "sub",
             "the claim by which a person is called"),
    Variable("PUBLIC_URL", "public_url", _url, _HTTP, "",
             "the address by which callers reach the server: its host is taken in `Host` and "
             "`Origin`, and agents are told it; unset: the server's own address"),
    Variable("AGENT_BASE_URL", "agent_base_url", _url, _HTTP, "",
             "what agents are told to call back; unset: `PUBLIC_URL`"),
    Variable("BASE_PATH", "base_path", _prefix, "a path such as /orchestrator", "/",
             "a prefix of every path, for a proxy that serves more than this"),
    Variable("TRUSTED_PROXIES", "trusted_proxies", _networks,
             "a comma list of addresses and networks such as 10.0.0.0/8", "",
             "whose `X-Forwarded-For` says who called"),
    Variable("CORS_ORIGINS", "cors_origins", _origins,
             "a comma list of origins such as https://app.example", "",
             "the pages of other origins that may call"),
    Variable("EGRESS_ALLOW", "egress_allow", _egress,
             "a comma list of `loopback`, networks such as 10.0.0.0/8 and host patterns", "",
             "what else may be dialled: `loopback`, networks such as 10.0.0.0/8, patterns of hosts "
             "or addresses"),
    Variable("SECRET_KEY", "secret_keys", _secrets, "a comma list of keys", "",
             "encrypts credentials and signs tokens; the first does, all decrypt and verify",
             secret=True),
    Variable("SECRET_KEY_FILE", "secret_key_file", str, "a path", "",
             "where the key is when `SECRET_KEY` is unset; unset: beside the database, `.key`"),
    Variable("LOG_LEVEL", "log_level", _choice(*LEVELS), ", ".join(LEVELS), "info",
             "which log lines are written to standard error"),
    Variable("OTEL_EXPORTER_OTLP_ENDPOINT", "otlp_endpoint", _url,
             "a URL such as http://localhost:4318", "",
             "the collector that gets a span of each run and each attempt, by OTLP/HTTP at "
             "`/v1/traces` below it; needs the extra `otel`; unset: no spans are sent"),
)  # fmt: skip


NOT_READ: Final = {
    "BUS_URL": "bus but its own",
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


def server_named(env: Mapping[str, str] | None = None) -> bool:
    """Return whether ORCHESTRATOR_URL names a server, so that no other is meant."""
    return bool((os.environ if env is None else env).get("ORCHESTRATOR_URL"))


def server_key(env: Mapping[str, str] | None = None) -> Secret | None:
    """Return the key that the commands show: ORCHESTRATOR_KEY."""
    text = (os.environ if env is None else env).get("ORCHESTRATOR_KEY")
    if not text:
        return None
    if not text.isascii() or not text.isprintable():
        raise SettingsInvalid("ORCHESTRATOR_KEY must be a key: printable ASCII such as ok_live_…")
    return Secret(text.strip())


def _read(variable: Variable, around: Mapping[str, str]) -> Any:
    text = around.get(variable.name)
    if text is None or (not text and variable.name != "INGRESS_URL"):
        text = variable.default
        if not text and variable.parse in _OPTIONAL:
            return None
    try:
        text.encode()  # what is no text arrives as unpaired surrogates
        return variable.parse(text.strip())
    except ValueError:
        shown = "what it is now" if variable.secret else _shown(text)
        raise SettingsInvalid(f"{variable.name} must be {variable.expected}, not {shown}") from None


def _shown(text: str) -> str:
    """Return a value as a message may have it: URLs without their user and password."""
    told = _USER.sub("…@", text)
    return repr(told if len(told) <= _SHOWN else told[:_SHOWN] + "…")


def _completed(values: dict[str, Any]) -> Settings:
    host = values["http_host"]
    if host == "localhost":
        host = values["http_host"] = None
    base = values["base_path"]
    public = _under(values["public_url"] or _address(host, values["http_port"]), base)
    key_file = values.pop("admin_key_file")
    if values["admin_key"] is None and key_file is not None:
        values["admin_key"] = _admin_key_of(key_file)
    if values["oidc_issuer"] and not values["oidc_audience"]:
        raise SettingsInvalid("OIDC_ISSUER needs OIDC_AUDIENCE: whom its tokens must be for")
    values["public_url"] = public
    values["agent_base_url"] = values["agent_base_url"] or public
    values["secret_key_file"] = _key_file(values)
    return Settings(**values)


def _is_postgres(url: str) -> bool:
    return url.partition(":")[0] in {"postgres", "postgresql"}


def _key_file(values: dict[str, Any]) -> str:
    """Return where the secret key is when SECRET_KEY is unset; every server must have the same."""
    given: str | None = values["secret_key_file"]
    if not _is_postgres(values["database_url"]):
        try:
            return given or f"{locate(values['database_url']).path}.key"
        except DatabaseRefused as error:
            raise SettingsInvalid(error.message) from error
    if not given and not values["secret_keys"]:
        raise SettingsInvalid(
            "SECRET_KEY or SECRET_KEY_FILE must be set with a PostgreSQL database, for all servers "
            "on it need the same; make one with: openssl rand -hex 32"
        )
    return given or ""


def _under(url: str, base: str) -> str:
    """Return the address at which a server with a path prefix is reached."""
    return url if url.rstrip("/").endswith(base) else url.rstrip("/") + base


def _admin_key_of(path: str) -> Secret:
    try:
        return _admin_key(Path(path).read_text(encoding="utf-8").strip())
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or f"it needs {ADMIN_KEY_MIN} or more characters"
        raise SettingsInvalid(f"ADMIN_KEY_FILE {_shown(path)} cannot be taken: {why}") from None


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
