"""Where the runs of a batch stand: what guards ask and what the next number follows from."""

import msgspec


class Head(msgspec.Struct, frozen=True):
    """How a run was left by the last op; its row is locked for as long as this is used."""

    key: int
    version: int
    epoch: int
    status: str
    head: int
    tenant: str
    session_id: str
