"""Access to the database: queries by topic on a connection or in a transaction."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import Final

import psycopg
from psycopg import errors

from tilecache.mercator import CellRectangle
from tilecache_daemon.store.change_feed import ChangeFeed
from tilecache_daemon.store.connections import Connection
from tilecache_daemon.store.database import Database
from tilecache_daemon.store.evictions import EvictionQueries
from tilecache_daemon.store.freshness import FreshnessQueries
from tilecache_daemon.store.statements import Statements
from tilecache_daemon.store.tiles import TileQueries
from tilecache_daemon.store.uploads import UploadQueries
from tilecache_daemon.store.usage import UsageQueries

_PLANNED_ANEW: Final = 6


class Store:
    """Opens `Queries` on the database's connections."""

    def __init__(self, database: Database, changes: ChangeFeed) -> None:
        self._database = database
        self._changes = changes

    @property
    def available(self) -> bool:
        """Whether PostgreSQL answered when it was last asked."""
        return self._database.available

    @asynccontextmanager
    async def connection(self) -> "AsyncIterator[Queries]":
        """Queries that change no tile. Raises TileCacheErrors."""
        async with self._database.connection() as connection:
            yield Queries(connection)

    @asynccontextmanager
    async def transaction(self, *, own_accesses: bool = False) -> "AsyncIterator[Queries]":
        """Queries that commit together, or not at all. Raises TileCacheErrors.

        When it has ended, the change feed's subscribers have its changes; with
        `own_accesses` marked as access times that this daemon wrote.
        """
        marker = self._changes.new_marker()
        try:
            async with self._database.transaction() as connection:
                queries = Queries(connection)
                if own_accesses:
                    await queries.database.set_writer(self._changes.writer_id)
                yield queries
                await queries.database.send_marker(marker)
            await self._changes.wait_for_marker(marker)
        finally:
            self._changes.discard_marker(marker)


async def warm_up(connection: Connection) -> None:
    """Has PostgreSQL plan the statements of reads: on a new connection the first execution takes
    a few milliseconds more, and a statement is planned anew until its sixth. It does not wait
    for locks on the table, and leaves a missing table to those who need it."""
    queries = Queries(connection)
    with suppress(errors.LockNotAvailable, errors.QueryCanceled, psycopg.ProgrammingError):
        async with connection.transaction():
            await queries.database.limit_lock_wait()
            for _ in range(_PLANNED_ANEW):
                await queries.tiles.read_blocks(0, [CellRectangle(0, 0, 0, 0)])
                await queries.tiles.read_tiles([])


class DatabaseQueries(Statements):
    """What the database says of itself."""

    async def set_writer(self, writer: str) -> None:
        """Puts the writer's id into the change notifications of this transaction."""
        await self._execute("set_writer", {"writer": writer})

    async def limit_lock_wait(self) -> None:
        """The rest of the transaction waits for no lock longer than a moment."""
        await self._execute("limit_lock_wait")

    async def send_marker(self, marker: str) -> None:
        """Notifies last: all other notifications of this transaction arrive before."""
        await self._execute("send_marker", {"payload": marker})

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
