"""Who may do what: permissions, the roles that have them, and a caller as the rules see it."""

from collections.abc import Iterable, Mapping
from typing import Final, Literal, TypeAlias

import msgspec

from orchestrator.core import values
from orchestrator.core.errors import Forbidden, InvalidRequest

TENANT: Final = "default"
"""The tenant of every caller while there are no keys, and of keys that name none."""
OPEN: Final = "open"
"""The permission that everybody has, also without a credential."""

PERMISSIONS: Final[Mapping[str, str]] = {
    OPEN: "asks for nothing",
    "runs:write": "invoke agents, run again",
    "runs:cancel": "end runs",
    "runs:read": "read a run and its log",
    "runs:list": "list runs",
    "sessions:write": "add messages to a transcript",
    "sessions:read": "read a session and its transcript",
    "sessions:list": "list sessions",
    "tokens:write": "make tokens for a session",
    "agents:write": "register, heartbeat, drain and remove agents",
    "agents:read": "look at agents",
    "agents:invoke": "call an agent as an agent does",
    "metrics:read": "read the server's counters",
    "keys:write": "make, rotate and revoke keys",
    "keys:read": "list keys",
    "audit:read": "read and verify the audit log",
    "secrets:write": "encrypt stored secrets anew",
}

_READ: Final = frozenset(
    {"runs:read", "runs:list", "sessions:read", "sessions:list", "agents:read"}
)

ROLES: Final[Mapping[str, frozenset[str]]] = {
    "admin": frozenset(PERMISSIONS) - {OPEN},
    "ingress": _READ
    | {"runs:write", "runs:cancel", "sessions:write", "tokens:write", "agents:invoke"},
    "agent": frozenset(
        {"agents:write", "agents:read", "agents:invoke", "runs:read", "sessions:read"}
    ),
    "approver": _READ,
    "viewer": _READ | {"metrics:read"},
}
"""What the keys of a role may do. `approver` is a viewer who will decide, once there are tools."""

SESSION_SCOPES: Final[Mapping[str, frozenset[str]]] = {
    "read": frozenset({"runs:read", "runs:list", "sessions:read"}),
    "invoke": frozenset({"runs:write", "runs:cancel"}),
    "tool_result": frozenset(),
    "decide": frozenset(),
}
"""What a session's token may be made for, in that session alone; the last two wait for tools."""

RUN_SCOPES: Final = frozenset(
    {"agents:invoke", "agents:read", "runs:read", "runs:cancel", "sessions:read"}
)
"""What the token of an attempt may do at most: with its own run, those below it, its session."""

LOCAL: Final = "local"
"""The maker of tokens that were made while there was no key."""

Kind: TypeAlias = Literal["nobody", "local", "key", "person", "session", "run"]


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who calls, as far as it was proven.

    `name` is how the audit and the logs call it. `root` is who may name any tenant: the operator
    himself. A caller with a `session_id` sees that session only, one with a `run_id` that run and
    those below it; with an `agent_id` it changes that agent only. `key_id` is the key that stands
    behind it, `expires_at` when that ends by itself, milliseconds UTC. `maker` is what tokens that
    it makes depend on, where that is no key.
    """

    kind: Kind
    tenant: str
    name: str
    permissions: frozenset[str] = frozenset()
    root: bool = False
    person: str | None = None
    key_id: str | None = None
    session_id: str | None = None
    run_id: str | None = None
    attempt: int = 0
    epoch: int = 0
    agent_id: str | None = None
    limits: Mapping[str, str] = {}
    expires_at: int | None = None
    maker: str | None = None

    def may(self, permission: str) -> bool:
        """Return whether the caller has a permission of the table."""
        return permission == OPEN or permission in self.permissions

    def tenant_named(self, wanted: str | None) -> str:
        """Return the tenant that is meant; raises Forbidden for another than the caller's own."""
        if wanted is None or wanted == self.tenant:
            return self.tenant
        if not self.root:
            raise Forbidden("only ADMIN_KEY, or a command beside the database, names a tenant")
        return values.name(wanted, "tenant")

    def operates(self, home: str) -> bool:
        """Return whether a URL that the caller registers may be a private address.

        That is for admins of `home`, the tenant whose network this is.
        """
        return "keys:write" in self.permissions and (self.root or self.tenant == home)


def nobody(tenant: str) -> Caller:
    """Return the caller who has shown nothing."""
    return Caller(kind="nobody", tenant=tenant, name="nobody")


def local(tenant: str) -> Caller:
    """Return the caller of a server without keys: whoever can reach it is its operator."""
    return Caller(
        kind="local",
        tenant=tenant,
        name="local",
        permissions=ROLES["admin"],
        root=True,
        maker=LOCAL,
    )


def role(text: str) -> str:
    """Return a role of the table; raises InvalidRequest naming them."""
    if text not in ROLES:
        raise InvalidRequest(f"role must be one of {', '.join(ROLES)}")
    return text


def scopes(wanted: Iterable[str], known: Iterable[str]) -> list[str]:
    """Return scopes, each once and in order; raises InvalidRequest for one that is not known."""
    found, names = sorted(set(wanted)), sorted(known)
    if not set(found) <= set(names):
        raise InvalidRequest(f"scopes may hold {', '.join(names)}")
    return found
