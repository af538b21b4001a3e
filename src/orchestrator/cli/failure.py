"""How a command ends: the exit codes, and the error that becomes one sentence and a code."""

from enum import IntEnum


class Exit(IntEnum):
    """The exit code of every command."""

    OK = 0
    """It is done; for a run: it ended well."""
    FAILED = 1
    """The run failed, or a check did not pass."""
    USAGE = 2
    """The command, a setting or the database is not as it must be; nothing was begun."""
    UNREACHABLE = 3
    """No server answers, or it went away and did not come back."""
    NOT_FOUND = 4
    """The server does not know that run, agent or session."""
    CANCELLED = 5
    """The run was cancelled."""
    REFUSED = 6
    """The server understood and said no: a conflict, a limit, a rule."""
    INTERRUPTED = 130
    """Ctrl-C."""


class CommandFailed(Exception):
    """What, why and, in `hint`, what to do next; `code` is the exit code."""

    def __init__(self, message: str, code: Exit = Exit.USAGE, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.hint = hint
