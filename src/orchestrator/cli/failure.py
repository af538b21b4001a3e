"""How a command ends: the exit codes, and the error that becomes one sentence and a code."""

from enum import IntEnum
from typing import Final


class Exit(IntEnum):
    """The exit code of every command; MEANINGS says what each one means."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    NOT_FOUND = 4
    CANCELLED = 5
    REFUSED = 6
    INTERRUPTED = 130


MEANINGS: Final = {
    Exit.OK: "it is done; for a run: it ended well",
    Exit.FAILED: "the run failed, a check did not pass, or the output could not be written",
    Exit.USAGE: "the command, a setting or the database is not as it must be; nothing was begun",
    Exit.UNREACHABLE: "no orchestrator answers, or it went away for more than a minute",
    Exit.NOT_FOUND: "the server does not know that run, agent or session",
    Exit.CANCELLED: "the run was cancelled",
    Exit.REFUSED: "the server understood and said no: a conflict, a limit, a rule",
    Exit.INTERRUPTED: "Ctrl-C",
}


class CommandFailed(Exception):
    """What, why and, in `hint`, what to do next; `code` is the exit code."""

    def __init__(self, message: str, code: Exit = Exit.USAGE, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.hint = hint
