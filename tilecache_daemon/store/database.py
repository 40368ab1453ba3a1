"""The connection pool's life, and the one place where psycopg's errors become ours."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

import psycopg
import structlog
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict
from psycopg.types.numeric import Int8BinaryLoader
from psycopg_pool import AsyncConnectionPool, PoolTimeout, TooManyRequests

from tilecache_daemon.errors import (
    DatabaseFullError,
    DatabaseUnavailableError,
    OverloadedError,
    QueryCanceledError,
    SchemaMismatchError,
    TileCacheError,
    WriteConflictError,
)
from tilecache_daemon.store.connections import (
    ANSWER_TIMEOUT_S,
    Connection,
    ask,
    connect,
    connect_timeout_s,
    cut,
    cut_after,
)

PROBE_INTERVAL_S: Final = 1.0
_SILENT_S: Final = 1.5
"""Who has waited in vain for a connection has waited for a silent server if the probe had no
answer for so long, and not for other calls."""
WAITING_PER_CONNECTION: Final = 16
"""How many calls may wait for each connection of the pool."""
KEPT_FOR_READS: Final = 3
"""Connections of the pool that writes leave alone."""
_CLOSE_TIMEOUT_S: Final = 0.5
"""How long the pool's own tasks may take to end before the pool is closed without them. Calls
that wait for a connection wait so much longer where such a task waits for a silent server."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class PoolStatus(NamedTuple):
    """How busy the connections are."""

    size: int
    in_use: int
    max_size: int
    waiting: int
    """Calls that wait for a connection."""


class Database:
    """A pool that is thrown away when PostgreSQL goes and made anew when it is back.

    The monitor's probe on a connection of its own looks every second, and at once when
    a call has met a broken connection. While PostgreSQL is away, calls fail
    immediately instead of waiting for a connection that cannot come.
    """

    def __init__(
        self,
        dsn: str,
        *,
        min_size: int,
        max_size: int,
        timeout_s: float,
        statement_timeout_s: float,
        warm_up: Callable[[Connection], Awaitable[None]] | None = None,
    ) -> None:
        """`warm_up` is done on each connection before it is used."""
        self._dsn = dsn
        self._warm_up = warm_up
        self._sizes = (min_size, max_size)
        self._timeout_s = timeout_s
        self._statement_timeout_s = statement_timeout_s
        self._writes = _Turns(max(max_size - KEPT_FOR_READS, 1), timeout_s)
        self._pool: AsyncConnectionPool[Connection] | None = None
        self._in_use: set[Connection] = set()
        self._look_now = asyncio.Event()
        self._answered_at = 0.0
        """When the server answered the probe last, as the event loop counts."""
        self._listeners: list[Callable[[], None]] = []

    @property
    def available(self) -> bool:
        """Whether PostgreSQL answered when it was last asked."""
        return self._pool is not None

    @property
    def pool_status(self) -> PoolStatus:
        """How busy the connections are; none are there while PostgreSQL is away."""
        stats = self._pool.get_stats() if self._pool else {}
        size = stats.get("pool_size", 0)
        in_use = size - stats.get("pool_available", 0)
        waiting = stats.get("requests_waiting", 0) + self._writes.waiting
        return PoolStatus(size, in_use, self._sizes[1], waiting)

    def on_change(self, listener: Callable[[], None]) -> None:
        """`listener` is called whenever `available` changes."""
        self._listeners.append(listener)

    async def open(self) -> None:
        """Opens the pool; raises DatabaseUnavailableError if PostgreSQL does not answer."""
        with translated_errors():
            await self._open_pool()

    async def monitor(self) -> None:
        """Checks whether PostgreSQL answers, until cancelled: closes the pool when it does
        not, and opens another one when it does again."""
        probe: Connection | None = None
        try:
            while True:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._look_now.wait(), PROBE_INTERVAL_S)
                was_called = self._look_now.is_set()
                self._look_now.clear()
                try:
                    probe = probe or await connect(self._dsn, "tilecache-probe")
                    await ask(probe)
                    self._answered_at = _now()
                    await self._found(was_called)
                except (psycopg.Error, PoolTimeout, OSError) as error:
                    if probe:
                        cut(probe)
                        await probe.close()
                        probe = None
                    await self._missed(error)
        finally:
            if probe:
                await probe.close()

    async def close(self) -> None:
        """Closes every connection of the pool. Idempotent."""
        await self._drop_pool()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection whose statements commit one by one.

        Raises a TileCacheError for whatever psycopg raises within. One that is held
        for longer than two statements may take is cut: its server has fallen silent.
        """
        pool = self._pool
        if pool is None:
            raise DatabaseUnavailableError("PostgreSQL does not answer")
        try:
            with translated_errors():
                async with pool.connection() as connection:
                    self._in_use.add(connection)
                    try:
                        with cut_after(connection, 2 * self._statement_timeout_s):
                            yield connection
                    finally:
                        self._in_use.discard(connection)
        except DatabaseUnavailableError:
            self._look_now.set()
            raise
        except OverloadedError as error:
            if _now() - self._answered_at > _SILENT_S:
                raise DatabaseUnavailableError("PostgreSQL does not answer") from error
            raise

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """As `connection`, but all or nothing: committed when the block ends well.

        Transactions are for writes. They wait for each other before they wait for a
        connection, so that some are always left to reads.
        """
        async with (
            self._writes.turn(),
            self.connection() as connection,
            connection.transaction(),
        ):
            yield connection

    async def _open_pool(self) -> None:
        min_size, max_size = self._sizes
        pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            self._dsn,
            kwargs={
                "autocommit": True,
                "options": self._options(),
                "application_name": "tilecache",
                "connect_timeout": round(ANSWER_TIMEOUT_S),
                "prepare_threshold": 1,
            },
            min_size=min_size,
            max_size=max_size,
            max_waiting=max_size * WAITING_PER_CONNECTION,
            timeout=self._timeout_s,
            reconnect_timeout=ANSWER_TIMEOUT_S,
            configure=self._prepare,
            open=False,
        )
        try:
            await pool.open(wait=True, timeout=connect_timeout_s(self._dsn) + ANSWER_TIMEOUT_S)
        except BaseException:
            await pool.close(_CLOSE_TIMEOUT_S)
            raise
        self._pool = pool
        self._answered_at = _now()

    def _options(self) -> str:
        """The address's own, and ours, which count more."""
        own = conninfo_to_dict(self._dsn).get("options") or os.environ.get("PGOPTIONS", "")
        return (
            f"{own} -c statement_timeout={round(self._statement_timeout_s * 1000)}"
            # Elsewhere the first and the last day of Python's calendar cannot be read.
            " -c timezone=UTC -c idle_in_transaction_session_timeout=60000"
        )

    async def _prepare(self, connection: Connection) -> None:
        """Acknowledged means committed, also where the server's setting is not to wait.

        A time in a binary result is read as PostgreSQL sends it: microseconds since 2000.
        """
        connection.adapters.register_loader("timestamptz", Int8BinaryLoader)
        await connection.execute(
            "SELECT set_config(name, 'on', false) FROM pg_settings"
            " WHERE name = 'synchronous_commit' AND setting = 'off'"
        )
        if self._warm_up:
            await self._warm_up(connection)

    async def _drop_pool(self) -> None:
        pool, self._pool = self._pool, None
        if pool is None:
            return
        self._notify()
        for connection in list(self._in_use):
            cut(connection)
        await pool.close(_CLOSE_TIMEOUT_S)

    async def _found(self, connections_may_be_broken: bool) -> None:
        if self._pool is None:
            await self._open_pool()
            log.info("database_back")
            self._notify()
        elif connections_may_be_broken:
            await self._pool.check()

    async def _missed(self, error: Exception) -> None:
        if self._pool is not None:
            log.warning("database_lost", cause=str(error) or type(error).__name__)
            await self._drop_pool()

    def _notify(self) -> None:
        for listener in self._listeners:
            listener()


class _Turns:
    """So many at once. Others wait, a bounded number of them for a bounded time."""

    def __init__(self, count: int, timeout_s: float) -> None:
        self._free = asyncio.Semaphore(count)
        self._room = count * WAITING_PER_CONNECTION
        self._timeout_s = timeout_s
        self.waiting = 0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Raises OverloadedError if no turn comes."""
        await self._wait()
        try:
            yield
        finally:
            self._free.release()

    async def _wait(self) -> None:
        if not self._free.locked():
            await self._free.acquire()
            return
        if self.waiting >= self._room:
            raise OverloadedError("as many writes wait as may")
        self.waiting += 1
        try:
            await asyncio.wait_for(self._free.acquire(), self._timeout_s)
        except asyncio.TimeoutError:
            raise OverloadedError("other writes take too long") from None
        finally:
            self.waiting -= 1


def _now() -> float:
    return asyncio.get_running_loop().time()


@contextlib.contextmanager
def translated_errors() -> Iterator[None]:
    """Raises what psycopg raises as a TileCacheError, with the cause kept."""
    try:
        yield
    except (psycopg.Error, PoolTimeout) as error:
        raise translate(error) from error


def translate(error: Exception) -> TileCacheError:
    """The TileCacheError that a psycopg error stands for; what is no operating
    condition is raised as it is."""
    match error:
        case TooManyRequests() | PoolTimeout():
            return OverloadedError("all database connections are busy")
        case errors.QueryCanceled():
            return QueryCanceledError("the query ran longer than it may")
        case errors.DiskFull() | errors.OutOfMemory() | errors.ConfigurationLimitExceeded():
            return DatabaseFullError(f"PostgreSQL has no room left: {_first_line(error)}")
        case errors.UndefinedTable() | errors.UndefinedColumn() | errors.UndefinedFunction():
            return SchemaMismatchError(f"the schema is not this version's: {_first_line(error)}")
        case errors.SerializationFailure() | errors.DeadlockDetected():
            return WriteConflictError("another writer was in the way")
        case errors.ReadOnlySqlTransaction():
            return DatabaseUnavailableError("PostgreSQL takes no writes: it is a standby")
        case (
            psycopg.OperationalError()
            | psycopg.InterfaceError()
            | errors.IdleInTransactionSessionTimeout()
        ):
            return DatabaseUnavailableError(f"PostgreSQL does not answer: {_first_line(error)}")
    raise error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
