"""Where the runs of a batch stand: what guards ask and what the next number follows from."""

import msgspec

from orchestrator.core.ops import Guard


class Head(msgspec.Struct, frozen=True):
    """How a run was left by the last op; its row is locked for as long as this is used."""

    key: int
    version: int
    epoch: int
    status: str
    head: int
    tenant: str
    session_id: str

    def objection(self, guard: Guard) -> str | None:
        """Return what of `guard` does not hold."""
        if guard.epoch is not None and self.epoch != guard.epoch:
            return "epoch"
        if guard.version is not None and self.version != guard.version:
            return "version"
        if guard.states and self.status not in guard.states:
            return "state"
        return None
