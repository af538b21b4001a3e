"""The store on one SQLite file."""

from orchestrator.stores.sqlite.location import locate
from orchestrator.stores.sqlite.lock import address_of, announce, holder_of
from orchestrator.stores.sqlite.migrating import plan, up
from orchestrator.stores.sqlite.store import SQLiteStore, open_store

__all__ = [
    "SQLiteStore",
    "address_of",
    "announce",
    "holder_of",
    "locate",
    "open_store",
    "plan",
    "up",
]
