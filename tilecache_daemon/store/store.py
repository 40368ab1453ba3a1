"""The store: units of work on the database, with one method per query."""

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
from tilecache_daemon.store.digests import DigestQueries
from tilecache_daemon.store.evictions import EvictionQueries
from tilecache_daemon.store.flights import FlightQueries
from tilecache_daemon.store.freshness import FreshnessQueries
from tilecache_daemon.store.pins import PinQueries
from tilecache_daemon.store.statements import Statements
from tilecache_daemon.store.tiles import TileQueries
from tilecache_daemon.store.uploads import UploadQueries
from tilecache_daemon.store.usage import UsageQueries

_CUSTOM_PLANS: Final = 6
"""Executions of a prepared statement until PostgreSQL caches its plan."""


class Store:
    """Provides `Queries` on connections of the database. Raises TileCacheErrors."""

    def __init__(self, database: Database, changes: ChangeFeed) -> None:
        self._database = database
        self._changes = changes

    @property
    def available(self) -> bool:
        """Whether PostgreSQL answered the last probe."""
        return self._database.available

    @asynccontextmanager
    async def connection(self) -> "AsyncIterator[Queries]":
        """Queries that change no tile, in autocommit mode."""
        async with self._database.connection() as connection:
            yield Queries(connection)

    @asynccontextmanager
    async def transaction(self, *, own_accesses: bool = False) -> "AsyncIterator[Queries]":
        """Queries in one transaction.

        Returns after the change feed has delivered the transaction's changes to the cache, so
        that later reads see them. `own_accesses` marks them as accesses that this daemon
        recorded.
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
    """Prepares the read queries on a new connection and has PostgreSQL cache their plans. The
    first execution takes a few milliseconds more, and each one is planned until the sixth.
    Does not wait for locks. A missing table is reported by the first query that needs it."""
    queries = Queries(connection)
    with suppress(errors.LockNotAvailable, errors.QueryCanceled, psycopg.ProgrammingError):
        async with connection.transaction():
            await queries.database.limit_lock_wait()
            for _ in range(_CUSTOM_PLANS):
                await queries.tiles.read_blocks(0, [CellRectangle(0, 0, 0, 0)])
                await queries.tiles.read_tiles([])


class DatabaseQueries(Statements):
    """Settings and notifications of a transaction, and the latest recorded time."""

    async def set_writer(self, writer: str) -> None:
        """Puts the writer's id into the change notifications of this transaction."""
        await self._execute("set_writer", {"writer": writer})

    async def limit_lock_wait(self) -> None:
        """Limits the wait for each lock to 20 ms for the rest of the transaction."""
        await self._execute("limit_lock_wait")

    async def send_marker(self, marker: str) -> None:
        """Notifies last: all other notifications of this transaction arrive before."""
        await self._execute("send_marker", {"payload": marker})

    async def read_latest_time_seen(self, latest_plausible: datetime) -> datetime | None:
        """The latest time up to `latest_plausible` that the database has recorded."""
        latest: datetime | None = await self._value(
            "latest_time_seen", {"latest_plausible": latest_plausible}
        )
        return latest

    async def is_time_implausible(self, latest_plausible: datetime) -> bool:
        """Whether the database has recorded a later time."""
        return bool(
            await self._value("is_time_implausible", {"latest_plausible": latest_plausible})
        )


class Queries:
    """The query catalogue on one connection, grouped by topic."""

    def __init__(self, connection: Connection) -> None:
        self.tiles = TileQueries(connection)
        self.uploads = UploadQueries(connection)
        self.freshness = FreshnessQueries(connection)
        self.evictions = EvictionQueries(connection)
        self.pins = PinQueries(connection)
        self.flights = FlightQueries(connection)
        self.usage = UsageQueries(connection)
        self.digests = DigestQueries(connection)
        self.database = DatabaseQueries(connection)
