"""What an error of the database or of the way to it means for whoever asked."""

from typing import Final

import asyncpg

from orchestrator.core.errors import OrchestratorError, StorageFull, StoreFailure, Unavailable

FULL: Final = "the database's disk is full: free some space there, the server goes on by itself"
AWAY: Final = "the database cannot be reached just now; it is tried again with the next request"
_LOST_CLASSES: Final = ("08",)
_LOST: Final = frozenset({"57P01", "57P02", "57P03", "57P05", "25P03"})
"""The server, or somebody on it, ended the connection; or it is not yet, or no longer, there."""
_AGAIN: Final = frozenset({"40001", "40P01", "55P03"})
"""Lost to another transaction: a serialization failure, a deadlock, a lock not had in time."""
_DISK_FULL: Final = "53100"
_BUSY_CLASSES: Final = ("53", "57", "25")
_BROKEN_CLASSES: Final = ("XX", "58", "F0")
_NOT_OURS: Final = frozenset({"42P01", "42703", "42501"})
"""Tables or columns that were there when we opened have gone, or our rights to them."""
_NO_PARTITION: Final = "23514"


def is_lost(error: BaseException) -> bool:
    """Return whether the connection is gone: what was asked last may or may not have happened."""
    if isinstance(error, asyncpg.PostgresError):
        state = str(error.sqlstate or "")
        return state in _LOST or state.startswith(_LOST_CLASSES)
    if isinstance(error, asyncpg.InternalClientError):
        return True  # an answer that breaks off in its middle
    if isinstance(error, asyncpg.InterfaceError):
        return "closed" in str(error)
    return isinstance(error, OSError)


def is_read_only(error: BaseException) -> bool:
    """Return whether the session may not write; that does not pass before there is another one."""
    return isinstance(error, asyncpg.ReadOnlySQLTransactionError)


def is_contended(error: BaseException) -> bool:
    """Return whether the same transaction may succeed when it is made again."""
    if isinstance(error, asyncpg.InvalidCachedStatementError):
        return True  # the schema was brought up to date meanwhile
    return isinstance(error, asyncpg.PostgresError) and str(error.sqlstate) in _AGAIN


def lacks_bucket(error: BaseException) -> bool:
    """Return whether a day's part of the log has gone that was there before."""
    return (
        isinstance(error, asyncpg.PostgresError)
        and error.sqlstate == _NO_PARTITION
        and "no partition" in str(error)
    )


def judged(error: Exception) -> Exception:
    """Return what callers are told; an error that is a caller's own stays as it is."""
    if isinstance(error, OrchestratorError):
        return error
    if is_lost(error):
        return Unavailable(AWAY)
    if is_contended(error):
        return Unavailable("others were writing the same rows all the time; try again")
    if isinstance(error, asyncpg.PostgresError):
        return _by_state(error, str(error.sqlstate or ""))
    return error


def _by_state(error: asyncpg.PostgresError, state: str) -> Exception:
    if state == _DISK_FULL:
        return StorageFull(FULL)
    if state.startswith(_BUSY_CLASSES):
        return Unavailable(f"the database takes no commits just now: {error}")
    if state in _NOT_OURS:
        return StoreFailure(f"the database's schema was changed beneath us: {error}")
    if state.startswith(_BROKEN_CLASSES):
        return StoreFailure(f"the database is damaged ({error}); look at its log")
    return error
