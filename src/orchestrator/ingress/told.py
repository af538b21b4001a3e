"""What the ingress can be told."""

import msgspec

from orchestrator.core.secret import Secret


class IngressSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the ingress was told; `ws_host` None means both loopback addresses.

    `loopback` says that only this machine can reach it. `orchestrator_key` is what it shows the
    orchestrator for devices that have no token of their own.
    """

    ws_port: int = 8090
    ws_host: str | None = None
    loopback: bool = True
    orchestrator_url: str = "http://localhost:8080"
    orchestrator_key: Secret | None = None
    api_key: Secret | None = None
    ingress_key: Secret | None = None
    auth_mode: str = "auto"
    cors_origins: tuple[str, ...] = ()
    ws_max_message_size: int = 64 << 10
    ws_max_connections: int = 10_000
    ws_buffer_size: int = 1 << 20
    ws_ping_ms: int = 30_000
    ws_read_timeout_ms: int = 60_000
    ws_write_timeout_ms: int = 10_000
    log_level: str = "info"

    @property
    def open(self) -> bool:
        """Return whether a device may come without showing anything."""
        if self.auth_mode == "auto":
            return self.loopback and self.api_key is None
        return self.auth_mode == "off"
