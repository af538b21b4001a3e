"""An Egress that lets everything pass but what the test forbids, and notes what it was asked."""

from collections.abc import Iterable

from orchestrator.core.errors import EgressRefused


class OpenEgress:
    """Refuses the addresses in `forbidden` only."""

    def __init__(self, forbidden: Iterable[str] = ()) -> None:
        self.forbidden = frozenset(forbidden)
        self.judged: list[tuple[str, str]] = []

    def check(self, url: str, *, operator: bool) -> None:
        """Allow every URL: addresses are judged when they are dialled."""

    def judge(self, host: str, address: str, *, operator: bool) -> None:
        """Note the question; raise EgressRefused for a forbidden address."""
        del operator
        self.judged.append((host, address))
        if address in self.forbidden:
            raise EgressRefused(f"{host} leads to {address}, which this test forbids")
