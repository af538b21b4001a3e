"""What docs/settings.md says of the variables."""

from collections.abc import Sequence

from orchestrator.settings.ingress import INGRESS_VARIABLES
from orchestrator.settings.reading import Variable
from orchestrator.settings.variables import NOT_READ, VARIABLES


def table() -> str:
    """Return docs/settings.md's table of the server's variables."""
    return _table(VARIABLES)


def ingress_table() -> str:
    """Return docs/settings.md's table of the ingress's variables."""
    return _table(INGRESS_VARIABLES)


def _table(variables: Sequence[Variable]) -> str:
    rows = [
        f"| `{v.name}` | {f'`{v.default}`' if v.default else 'unset'} | {_cell(v.text)} |"
        for v in variables
    ]
    return "\n".join(["| variable | default | meaning |", "|---|---|---|", *rows])


def not_read() -> str:
    """Return the variables that stop a start because this version lacks what they are for."""
    return ", ".join(f"`{name}`" for name in NOT_READ)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
