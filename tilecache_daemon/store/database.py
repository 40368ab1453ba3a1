"""The connection pool's lifecycle, and the translation of psycopg's errors to TileCacheErrors."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Final, NamedTuple

import psycopg
import structlog
from psycopg import errors
from psycopg.abc import Buffer
from psycopg.types.datetime import TimestamptzLoader
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
from tilecache_daemon.models import FIRST_MICROS, LAST_MICROS, moment_of
from tilecache_daemon.store.connections import (
    ANSWER_TIMEOUT_S,
    Connection,
    connect,
    connect_timeout_s,
    connection_parameters,
    cut,
    cut_after,
    execute_promptly,
    has_ended,
    set_session,
)

PROBE_INTERVAL_S: Final = 1.0
_UNRESPONSIVE_S: Final = 1.5
"""If the server has not answered the probe for this long, a timeout while waiting for a pooled
connection means that the server does not respond, not that the pool is busy."""
WAITING_PER_CONNECTION: Final = 16
"""How many calls may wait, per connection of the pool."""
IDLE_IN_TRANSACTION_S: Final = 10.0
"""After this time PostgreSQL ends a session whose daemon hangs in a transaction, and releases its
locks. Under heavy load, the daemon pauses between two statements for half a second."""
KEPT_FOR_READS: Final = 3
"""Connections of the pool that are reserved for reads."""
_CLOSE_TIMEOUT_S: Final = 0.5
"""How long the pool's own tasks may take to end before the pool is closed without them. Calls
that wait for a connection wait so much longer where such a task waits for a silent server."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class PoolStatus(NamedTuple):
    """How many connections are in use, and how many calls wait for one."""

    size: int
    in_use: int
    max_size: int
    waiting: int


class NearestTimeLoader(TimestamptzLoader):
    """Times of text results. PostgreSQL knows times that Python's calendar has not, and other
    programs may have stored some: for those the nearest one that it has."""

    def load(self, data: Buffer) -> datetime:
        try:
            return super().load(data)
        except psycopg.DataError:
            text = bytes(data)
            is_early = text.startswith(b"-") or text.endswith(b"BC")
            return moment_of(FIRST_MICROS if is_early else LAST_MICROS)


class Database:
    """A connection pool that is closed when PostgreSQL becomes unavailable and reopened when
    it is available again.

    A probe on a separate connection checks the server every second, and at once after a call
    has failed on a broken connection. While PostgreSQL is unavailable, calls fail immediately
    instead of waiting for a connection.
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
        """`warm_up` runs on each new connection before its first use."""
        self._dsn = dsn
        self._warm_up = warm_up
        self._sizes = (min_size, max_size)
        self._timeout_s = timeout_s
        self._statement_timeout_s = statement_timeout_s
        self._writes = _WriteAdmission(max(max_size - KEPT_FOR_READS, 1), timeout_s)
        self._pool: AsyncConnectionPool[Connection] | None = None
        self._in_use: set[Connection] = set()
        self._probe_now = asyncio.Event()
        self._answered_at = 0.0
        """When the server last answered the probe, by the event loop's clock."""
        self._listeners: list[Callable[[], None]] = []

    @property
    def available(self) -> bool:
        """Whether PostgreSQL answered the last probe."""
        return self._pool is not None

    @property
    def pool_status(self) -> PoolStatus:
        """The pool's status; it has no connections while PostgreSQL is unavailable."""
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
                    await asyncio.wait_for(self._probe_now.wait(), PROBE_INTERVAL_S)
                call_failed = self._probe_now.is_set()
                self._probe_now.clear()
                try:
                    if probe and has_ended(probe):
                        # By a proxy or an administrator, perhaps; connecting tells.
                        await probe.close()
                        probe = None
                    probe = probe or await connect(self._dsn, "tilecache-probe")
                    await execute_promptly(probe)
                    self._answered_at = _now()
                    await self._probe_succeeded(check_pool=call_failed)
                except (psycopg.Error, PoolTimeout, OSError) as error:
                    if probe:
                        cut(probe)
                        await probe.close()
                        probe = None
                    await self._probe_failed(error)
        finally:
            if probe:
                await probe.close()

    async def close(self) -> None:
        """Closes every connection of the pool. Idempotent."""
        await self._drop_pool()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection in autocommit mode.

        Raises a TileCacheError for errors of psycopg in the block. A connection that is used
        for longer than twice the statement timeout is cut: its server no longer responds.
        """
        pool = self._pool
        if pool is None:
            raise DatabaseUnavailableError("PostgreSQL does not answer")
        try:
            with translated_errors():
                async with self._live_connection(pool) as connection:
                    self._in_use.add(connection)
                    try:
                        with cut_after(connection, 2 * self._statement_timeout_s):
                            yield connection
                    finally:
                        self._in_use.discard(connection)
        except DatabaseUnavailableError:
            self._probe_now.set()
            raise
        except OverloadedError as error:
            if _now() - self._answered_at > _UNRESPONSIVE_S:
                raise DatabaseUnavailableError("PostgreSQL does not answer") from error
            raise

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A connection in a transaction, which commits if the block succeeds and otherwise
        rolls back. Raises as `connection`.

        Transactions are for writes. Their number is limited below the size of the pool, so that
        some connections are always left to reads.
        """
        async with (
            self._writes.admitted(),
            self.connection() as connection,
            connection.transaction(),
        ):
            yield connection

    @asynccontextmanager
    async def _live_connection(
        self, pool: AsyncConnectionPool[Connection]
    ) -> AsyncIterator[Connection]:
        """A connection of the pool that the other side has not closed. Nothing was sent on those
        that are replaced, so that nothing is executed twice. (The pool's own check asks the
        server, and pauses between attempts.)"""
        while has_ended(connection := await pool.getconn()):
            self._probe_now.set()
            await connection.close()
            await pool.putconn(connection)
        try:
            async with connection:
                yield connection
        finally:
            await pool.putconn(connection)

    async def _open_pool(self) -> None:
        min_size, max_size = self._sizes
        pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            kwargs=connection_parameters(self._dsn, "tilecache") | {"prepare_threshold": 1},
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

    async def _prepare(self, connection: Connection) -> None:
        """Sets the session's own values, makes commits durable even if the server's
        `synchronous_commit` is off, and loads times of binary results as microseconds since
        2000."""
        connection.adapters.register_loader("timestamptz", Int8BinaryLoader)
        connection.adapters.register_loader("timestamptz", NearestTimeLoader)
        await set_session(connection, self._statement_timeout_s, IDLE_IN_TRANSACTION_S)
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

    async def _probe_succeeded(self, *, check_pool: bool) -> None:
        if self._pool is None:
            await self._open_pool()
            log.info("database_back")
            self._notify()
        elif check_pool:
            await self._pool.check()

    async def _probe_failed(self, error: Exception) -> None:
        if self._pool is not None:
            log.warning("database_lost", cause=str(error) or type(error).__name__)
            await self._drop_pool()

    def _notify(self) -> None:
        for listener in self._listeners:
            listener()


class _WriteAdmission:
    """Admission control for writes: `limit` at once; of the others, a bounded number waits for
    a bounded time."""

    def __init__(self, limit: int, timeout_s: float) -> None:
        self._free = asyncio.Semaphore(limit)
        self._max_waiting = limit * WAITING_PER_CONNECTION
        self._timeout_s = timeout_s
        self.waiting = 0

    @asynccontextmanager
    async def admitted(self) -> AsyncIterator[None]:
        """Waits for admission; raises OverloadedError if too many wait, or for too long."""
        await self._acquire()
        try:
            yield
        finally:
            self._free.release()

    async def _acquire(self) -> None:
        if not self._free.locked():
            await self._free.acquire()
            return
        if self.waiting >= self._max_waiting:
            raise OverloadedError(f"{self.waiting} writes are waiting, which is the limit")
        self.waiting += 1
        try:
            await asyncio.wait_for(self._free.acquire(), self._timeout_s)
        except asyncio.TimeoutError:
            raise OverloadedError("timed out waiting for other writes") from None
        finally:
            self.waiting -= 1


def _now() -> float:
    return asyncio.get_running_loop().time()


@contextlib.contextmanager
def translated_errors() -> Iterator[None]:
    """Translates psycopg's errors to TileCacheErrors, with the original as the cause."""
    try:
        yield
    except (psycopg.Error, PoolTimeout) as error:
        raise translate(error) from error


def translate(error: Exception) -> TileCacheError:
    """The TileCacheError for a psycopg error. Errors that are no operating condition, such as
    a wrong statement, are raised unchanged."""
    match error:
        case TooManyRequests() | PoolTimeout():
            return OverloadedError("all database connections are busy")
        case errors.QueryCanceled():
            return QueryCanceledError("the query exceeded the statement timeout")
        case errors.DiskFull() | errors.OutOfMemory() | errors.ConfigurationLimitExceeded():
            return DatabaseFullError(f"PostgreSQL is out of resources: {_first_line(error)}")
        case errors.UndefinedTable() | errors.UndefinedColumn() | errors.UndefinedFunction():
            return SchemaMismatchError(
                f"the schema does not match this version: {_first_line(error)}"
            )
        case errors.SerializationFailure() | errors.DeadlockDetected():
            return WriteConflictError("the transaction conflicted with another one; retry it")
        case errors.ReadOnlySqlTransaction():
            return DatabaseUnavailableError("PostgreSQL accepts no writes: it is a standby")
        case (
            psycopg.OperationalError()
            | psycopg.InterfaceError()
            | errors.IdleInTransactionSessionTimeout()
        ):
            return DatabaseUnavailableError(f"PostgreSQL does not answer: {_first_line(error)}")
    raise error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
