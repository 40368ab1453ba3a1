"""One method a query: parameters in, rows to models."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime

from tilecache_daemon.database import Connection, Database
from tilecache_daemon.store.evictions import EvictionQueries
from tilecache_daemon.store.freshness import FreshnessQueries
from tilecache_daemon.store.statements import Statements
from tilecache_daemon.store.tiles import TileQueries
from tilecache_daemon.store.uploads import UploadQueries
from tilecache_daemon.store.usage import UsageQueries


class Store:
    """Opens `Queries` on the database's connections."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @property
    def available(self) -> bool:
        """Whether PostgreSQL answered when it was last asked."""
        return self._database.available

    @asynccontextmanager
    async def connection(self) -> "AsyncIterator[Queries]":
        """Queries that commit one by one. Raises TileCacheErrors."""
        async with self._database.connection() as connection:
            yield Queries(connection)

    @asynccontextmanager
    async def transaction(self) -> "AsyncIterator[Queries]":
        """Queries that commit together, or not at all. Raises TileCacheErrors."""
        async with self._database.transaction() as connection:
            yield Queries(connection)


class DatabaseQueries(Statements):
    """What the database says of itself."""

    async def read_schema_revision(self) -> str:
        """The revision of the schema."""
        return str(await self._value("schema_revision"))

    async def read_latest_time_seen(self) -> datetime | None:
        """The latest moment that the database has recorded as past."""
        latest: datetime | None = await self._value("latest_time_seen")
        return latest


class Queries:
    """The statements of the catalogue on one connection, by topic."""

    def __init__(self, connection: Connection) -> None:
        self.tiles = TileQueries(connection)
        self.uploads = UploadQueries(connection)
        self.freshness = FreshnessQueries(connection)
        self.evictions = EvictionQueries(connection)
        self.usage = UsageQueries(connection)
        self.database = DatabaseQueries(connection)
