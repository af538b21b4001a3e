"""The engine's own settings: clocks, bounds and what agents are told."""

import msgspec

from orchestrator.core.secret import Secret


class AccessSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How callers are told apart: `open` lets everybody do everything, `keys_only` nobody without.

    With neither, everybody may do everything until there is a key.
    """

    admin_key: Secret | None = None
    open: bool = False
    keys_only: bool = False


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Times in milliseconds; None switches a clock or a retention off."""

    agent_timeout_ms: int = 300_000
    first_byte_timeout_ms: int | None = None
    idle_timeout_ms: int | None = None
    run_max_ms: int = 86_400_000
    max_open_runs: int = 10_000
    max_run_bytes: int = 64 << 20
    drain_timeout_ms: int = 30_000
    retention_runs_ms: int | None = None
    retention_deltas_ms: int | None = None
    base_url: str = "http://localhost:8080"
    access: AccessSettings = AccessSettings()


TRANSCRIPT_MESSAGES = 50
"""How many earlier messages an agent is given, newest last."""
TRANSCRIPT_BYTES = 256 << 10
"""How many bytes of them, counted as JSON."""
DEPTH_MAX = 8
"""How deep a tree of runs may become."""
SESSION_QUEUE_MAX = 100
"""How many runs of a session may wait for their turn."""
SESSION_PARALLEL_MAX = 100
"""How many runs of a session may go beside the others at a time."""
CHILDREN_MAX = 100
"""How many runs that one run has started may be open at a time."""
TREE_MAX = 1000
"""How many runs a tree shows."""
LEASE_MS = 15_000
"""How long a replica lives without renewing; it renews each third of that."""
FENCE_S = 10.0
"""After this long without a renewal a replica stops its own runs."""
AGENT_QUEUE_MAX = 1000
"""How many runs may wait on one server for a free instance of one agent."""
INSTANCES_MAX = 1000
"""How many instances an agent may have."""
