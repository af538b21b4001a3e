"""The server's settings, put together from what was read."""

import os
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import msgspec

from orchestrator.core.errors import DatabaseRefused, SettingsInvalid
from orchestrator.core.secret import Secret
from orchestrator.settings.reading import ADMIN_KEY_MIN, admin_key, read, shown
from orchestrator.settings.variables import NOT_READ, VARIABLES
from orchestrator.stores.sqlite import locate


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the server was told; `http_host` None means both loopback addresses."""

    http_port: int
    http_host: str | None
    database_url: str
    durability: str
    migrate: str
    ingress_url: str | None
    ingress_key: Secret | None
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


def load(
    env: Mapping[str, str] | None = None, flags: Mapping[str, str | None] | None = None
) -> Settings:
    """Return the settings; a flag (by variable name) wins over the environment.

    An empty variable means unset, except INGRESS_URL. Raises SettingsInvalid naming the variable,
    what was found and what was expected.
    """
    around = os.environ if env is None else env
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    values = {v.field: read(v, {**around, **given}) for v in VARIABLES}
    for name, missing in NOT_READ.items():
        if around.get(name):
            raise SettingsInvalid(f"{name} is set, and this version has no {missing}; unset it")
    return _completed(values)


def server_url(env: Mapping[str, str] | None = None) -> str:
    """Return the address that the commands call: ORCHESTRATOR_URL, or the local server's."""
    around = os.environ if env is None else env
    port = next(variable for variable in VARIABLES if variable.field == "http_port")
    return around.get("ORCHESTRATOR_URL") or f"http://localhost:{read(port, around)}"


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
        return admin_key(Path(path).read_text(encoding="utf-8").strip())
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or f"it needs {ADMIN_KEY_MIN} or more characters"
        raise SettingsInvalid(f"ADMIN_KEY_FILE {shown(path)} cannot be taken: {why}") from None


def _address(host: str | None, port: int) -> str:
    name = "localhost" if host in (None, "0.0.0.0", "::") else host  # noqa: S104  # compared
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def is_loopback(host: str) -> bool:
    """Return whether an address is this machine's own."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
