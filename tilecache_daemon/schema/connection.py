"""Connections for migrations, and the translation of their errors."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import psycopg
from psycopg import errors as pg
from psycopg.conninfo import conninfo_to_dict

from tilecache_daemon.errors import MigrationError
from tilecache_daemon.sockets import shut_down

CONNECT_TIMEOUT_S: Final = 10
"""Used if the connection string has none."""
LOCK_TIMEOUT_S: Final = 60.0
MIGRATION_LOCK_KEY: Final = int.from_bytes(b"tilecach", "big")
"""The key of the session advisory lock that a migrating process holds."""

_TYPICAL_ROW_BYTES: Final = 150
"""Of a tile before 0002, with its page's overhead."""

_CONNECTION_LOST: Final = (
    "08",  # connection_exception
    "57P01",  # admin_shutdown
    "57P02",  # crash_shutdown
    "57P03",  # cannot_connect_now
)

_log = logging.getLogger(__name__)


class DatabaseUnreachableError(MigrationError):
    """PostgreSQL does not answer, or the connection was lost. A later attempt may succeed."""


class Interruption:
    """Lets one thread end a migration that another one runs: it fails, and changes nothing."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requested = False
        self._connections: list[psycopg.Connection[Any]] = []

    def request(self) -> None:
        """Ends the migration's connections, whatever they wait for, and refuses new ones."""
        with self._lock:
            self._requested = True
            for connection in self._connections:
                with suppress(psycopg.Error, OSError):
                    shut_down(connection.fileno())

    def cover(self, connection: psycopg.Connection[Any]) -> None:
        """Has `request` end this connection too; raises MigrationError if it has been called."""
        with self._lock:
            if self._requested:
                connection.close()
                raise MigrationError("the migration was interrupted; nothing was changed")
            self._connections.append(connection)


def connect(
    dsn: str, lock_timeout_s: float = LOCK_TIMEOUT_S, interruption: Interruption | None = None
) -> psycopg.Connection[Any]:
    """An autocommit connection. Of the timeouts, only that for locks is set.

    Raises psycopg.Error, and MigrationError for a malformed dsn or an interrupted migration.
    """
    try:
        parameters: dict[str, Any] = conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        # libpq's message quotes the string, and with it the password.
        raise MigrationError("the dsn is not a connection string that libpq reads") from None
    parameters.setdefault("connect_timeout", CONNECT_TIMEOUT_S)
    parameters.setdefault("application_name", "tilecache migrate")
    parameters["client_encoding"] = "UTF8"
    connection = psycopg.connect(**parameters, autocommit=True)
    if interruption:
        interruption.cover(connection)
    settings = {
        # Timeouts that are meant for queries must not cancel a migration.
        "statement_timeout": 0,
        "lock_timeout": max(1, round(lock_timeout_s * 1000)),
        "idle_in_transaction_session_timeout": 0,
        "idle_session_timeout": 0,
    }
    for name, value_ms in settings.items():
        connection.execute("SELECT set_config(%s, %s, false)", [name, str(value_ms)])
    # A migration whose process has ended holds its locks no longer than this. Servers on
    # some platforms have no such check.
    with suppress(pg.InvalidParameterValue):
        connection.execute("SET client_connection_check_interval = '1s'")
    return connection


def lock(connection: psycopg.Connection[Any]) -> None:
    """Waits for the migration lock, at most for the connection's lock timeout.

    The lock is released when the connection closes.
    """
    try:
        connection.execute("SELECT pg_advisory_lock(%s)", [MIGRATION_LOCK_KEY])
    except pg.LockNotAvailable as error:
        raise MigrationError(
            "another process is migrating this database, and did not finish within "
            "migration_lock_timeout_s; nothing was changed"
        ) from error


def read_revision(connection: psycopg.Connection[Any]) -> str | None:
    """The revision of the database, known or not; None without a schema."""
    try:
        rows = connection.execute("SELECT version_num FROM alembic_version").fetchall()
    except pg.UndefinedTable:
        return None
    if len(rows) > 1:
        found = ", ".join(sorted(row[0] for row in rows))
        raise MigrationError(
            f"alembic_version has several revisions ({found}), which no version of this program "
            "writes; nothing was changed"
        )
    return rows[0][0] if rows else None


def estimate_tile_count(connection: psycopg.Connection[Any]) -> int:
    """The number of rows of `tiles`, from PostgreSQL's statistics and the table's size."""
    row = connection.execute(
        """
        SELECT CASE WHEN relpages > 0 AND reltuples > 0
                    -- As PostgreSQL's planner does: the density of the last analysis.
                    THEN reltuples / relpages * pg_relation_size(oid)
                         / current_setting('block_size')::int
                    ELSE pg_relation_size(oid) / %s END::bigint
        FROM pg_class WHERE oid = to_regclass('tiles')
        """,
        [_TYPICAL_ROW_BYTES],
    ).fetchone()
    return row[0] if row else 0


def analyze_tiles(connection: psycopg.Connection[Any]) -> None:
    """Updates the statistics of `tiles`. A failure is logged: autovacuum does it later."""
    try:
        connection.execute("ANALYZE tiles")
    except psycopg.Error as error:
        _log.warning("The table tiles could not be analysed: %s", error)


@contextmanager
def translating_errors() -> Iterator[None]:
    """Translates psycopg.Error to MigrationError."""
    try:
        yield
    except psycopg.Error as error:
        raise _migration_error(error) from error


def _migration_error(error: psycopg.Error) -> MigrationError:
    text = str(error).strip()
    match error:
        case pg.SerializationFailure():
            return MigrationError(f"the migration could not be serialized, twice: {text}")
        case pg.InsufficientPrivilege():
            return MigrationError(
                f"the database user lacks the privileges to migrate: {text}. The owner of the "
                "tables migrates them, with `tilecache migrate up`"
            )
        case pg.LockNotAvailable():
            return MigrationError(f"other sessions locked the tables; nothing was changed: {text}")
        case pg.DiskFull():
            return MigrationError(f"the database server has no disk space left: {text}")
        case pg.DuplicateTable():
            return MigrationError(f"the database has tables that no migration created: {text}")
        case psycopg.OperationalError(sqlstate=None):
            # An error without SQLSTATE comes from libpq, not from the server.
            return DatabaseUnreachableError(f"the database does not answer: {text}")
    if error.sqlstate and error.sqlstate.startswith(_CONNECTION_LOST):
        return DatabaseUnreachableError(f"the connection to the database was lost: {text}")
    return MigrationError(f"the migration failed; nothing was changed: {text}")
