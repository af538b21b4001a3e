"""The settings of `./orchestrator ingress`, a process of its own with few variables of its own."""

import os
from collections.abc import Mapping
from typing import Final

from orchestrator.core.errors import SettingsInvalid
from orchestrator.ingress import IngressSettings
from orchestrator.settings.reading import (
    BYTES,
    HTTP,
    MS,
    UP_TO,
    Variable,
    admin_key,
    choice,
    host,
    origins,
    port,
    positive,
    read,
    size,
    url,
)
from orchestrator.settings.server import is_loopback, server_key
from orchestrator.settings.variables import LEVELS, PRINTABLE

INGRESS_VARIABLES: Final[tuple[Variable, ...]] = (
    Variable("WS_PORT", "ws_port", port, "a port from 0 to 65535", "8090",
             "where the ingress listens; 0 takes any free port"),
    Variable("WS_HOST", "ws_host", host, "an address of this machine", "",
             "unset: both loopback addresses; any other address needs `API_KEY`, or an `AUTH_MODE` "
             "that says what is meant"),
    Variable("ORCHESTRATOR_URL", "orchestrator_url", url, HTTP, "http://localhost:8080",
             "the orchestrator; its key for this ingress, of the role `ingress`, is "
             "`ORCHESTRATOR_KEY`"),
    Variable("API_KEY", "api_key", admin_key, PRINTABLE, "",
             "the key that all devices share and show in `hello`; they need a session's token "
             "for a session that they did not make", secret=True),
    Variable("INGRESS_KEY", "ingress_key", admin_key, PRINTABLE, "",
             "the bearer of a push that comes from another machine; unset: those are refused",
             secret=True),
    Variable("AUTH_MODE", "auth_mode", choice("auto", "keys", "off"), "auto, keys or off", "auto",
             "`auto`: without `API_KEY` only this machine is served; `keys`: no device without "
             "`API_KEY` or a session's token; `off`: everybody who can reach it"),
    Variable("CORS_ORIGINS", "cors_origins", origins,
             "a comma list of origins such as https://app.example", "",
             "the pages of other origins that may connect"),
    Variable("WS_MAX_MESSAGE_SIZE", "ws_max_message_size", size, BYTES, "64KB",
             "how long a device's message may be; a longer one closes it with 1009"),
    Variable("WS_MAX_CONNECTIONS", "ws_max_connections", positive, f"a number above 0, {UP_TO}",
             "10000", "how many devices may be connected; more are refused with 503"),
    Variable("WS_BUFFER_SIZE", "ws_buffer_size", size, BYTES, "1MB",
             "how much may wait for a device that reads slowly; then it is closed with 1013"),
    Variable("WS_PING_MS", "ws_ping_ms", positive, MS, "30000", "how often a device is pinged"),
    Variable("WS_READ_TIMEOUT_MS", "ws_read_timeout_ms", positive, MS, "60000",
             "how long nothing may be heard of a device, pongs included"),
    Variable("WS_WRITE_TIMEOUT_MS", "ws_write_timeout_ms", positive, MS, "10000",
             "how long a device may read nothing of what waits for it"),
    Variable("LOG_LEVEL", "log_level", choice(*LEVELS), ", ".join(LEVELS), "info",
             "which log lines are written to standard error"),
)  # fmt: skip


def load_ingress(
    env: Mapping[str, str] | None = None, flags: Mapping[str, str | None] | None = None
) -> IngressSettings:
    """Return the ingress's settings; a flag (by variable name) wins over the environment.

    Raises SettingsInvalid naming the variable, and for an address that others reach without a key.
    """
    around = os.environ if env is None else env
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    values = {v.field: read(v, {**around, **given}) for v in INGRESS_VARIABLES}
    if values["ws_host"] == "localhost":
        values["ws_host"] = None
    loopback = values["ws_host"] is None or is_loopback(values["ws_host"])
    if not loopback and values["auth_mode"] == "auto" and values["api_key"] is None:
        raise SettingsInvalid(
            f"WS_HOST={values['ws_host']} lets others connect, and there is no API_KEY. Set it, "
            "or say what is meant: AUTH_MODE=keys for session tokens alone, AUTH_MODE=off for "
            "everybody"
        )
    return IngressSettings(**values, loopback=loopback, orchestrator_key=server_key(around))
