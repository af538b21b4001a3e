"""The store on PostgreSQL."""

from orchestrator.stores.postgres.location import SCHEMES, locate
from orchestrator.stores.postgres.schema import plan, prepare
from orchestrator.stores.postgres.store import PostgresStore, open_store

__all__ = ["SCHEMES", "PostgresStore", "locate", "open_store", "plan", "prepare"]
