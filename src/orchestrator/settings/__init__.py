"""Settings: the only folder that reads the environment, and the tables that say what is read."""

from orchestrator.settings.ingress import INGRESS_VARIABLES, load_ingress
from orchestrator.settings.pages import ingress_table, not_read, table
from orchestrator.settings.reading import ADMIN_KEY_MIN, Variable
from orchestrator.settings.server import (
    Settings,
    is_loopback,
    load,
    server_key,
    server_named,
    server_url,
)
from orchestrator.settings.variables import LEVELS, NOT_READ, VARIABLES

__all__ = [
    "ADMIN_KEY_MIN",
    "INGRESS_VARIABLES",
    "LEVELS",
    "NOT_READ",
    "VARIABLES",
    "Settings",
    "Variable",
    "ingress_table",
    "is_loopback",
    "load",
    "load_ingress",
    "not_read",
    "server_key",
    "server_named",
    "server_url",
    "table",
]
