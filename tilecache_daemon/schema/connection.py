"""How a migration reaches PostgreSQL, and what its failures are called."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from psycopg import errors as pg
from psycopg.conninfo import conninfo_to_dict

from tilecache_daemon.errors import MigrationError

CONNECT_TIMEOUT_S: Final = 10
"""Where the connection string gives none."""
LOCK_TIMEOUT_S: Final = 60.0
MIGRATION_LOCK_KEY: Final = int.from_bytes(b"tilecach", "big")
"""The session advisory lock that one who migrates holds."""

_GONE: Final = (
    "08",  # connection exception
    "57P01",  # the server is told to stop
    "57P02",  # it crashed
    "57P03",  # it is starting
)


class DatabaseUnreachableError(MigrationError):
    """PostgreSQL does not answer, or went away; worth another try later."""


def connect(dsn: str, lock_timeout_s: float = LOCK_TIMEOUT_S) -> psycopg.Connection[Any]:
    """A connection that commits each statement, on which only locks are waited for with a bound.

    Raises psycopg.Error, and MigrationError for a malformed dsn.
    """
    try:
        parameters: dict[str, Any] = conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        # libpq's message quotes the string, and with it the password.
        raise MigrationError("the dsn is not a connection string that libpq reads") from None
    parameters.setdefault("connect_timeout", CONNECT_TIMEOUT_S)
    parameters.setdefault("application_name", "tilecache migrate")
    connection = psycopg.connect(**parameters, autocommit=True)
    settings = {
        "lock_timeout": max(1, round(lock_timeout_s * 1000)),
        # Bounds meant for queries must not break off a migration.
        "statement_timeout": 0,
        "idle_in_transaction_session_timeout": 0,
        "idle_session_timeout": 0,
    }
    for name, value_ms in settings.items():
        connection.execute("SELECT set_config(%s, %s, false)", [name, str(value_ms)])
    return connection


def lock(connection: psycopg.Connection[Any]) -> None:
    """Waits until nobody else migrates, within the connection's lock timeout.

    The lock ends with the connection.
    """
    try:
        connection.execute("SELECT pg_advisory_lock(%s)", [MIGRATION_LOCK_KEY])
    except pg.LockNotAvailable as error:
        raise MigrationError(
            "another process is still migrating this database, longer than this one may wait "
            "(migration_lock_timeout_s); nothing was changed"
        ) from error


def read_revision(connection: psycopg.Connection[Any]) -> str | None:
    """The revision that the database is at, known or not; None without a schema."""
    try:
        rows = connection.execute("SELECT version_num FROM alembic_version").fetchall()
    except pg.UndefinedTable:
        return None
    if len(rows) > 1:
        found = ", ".join(sorted(row[0] for row in rows))
        raise MigrationError(
            f"the database is at several revisions at once ({found}), which no version leaves "
            "behind; nothing was changed"
        )
    return rows[0][0] if rows else None


@contextmanager
def translating_errors() -> Iterator[None]:
    """Raises MigrationError for each psycopg.Error."""
    try:
        yield
    except psycopg.Error as error:
        raise _migration_error(error) from error


def _migration_error(error: psycopg.Error) -> MigrationError:
    text = str(error).strip()
    match error:
        case pg.SerializationFailure():
            return MigrationError(f"the migration was not serializable, twice: {text}")
        case pg.InsufficientPrivilege():
            return MigrationError(f"the database user may not migrate the schema: {text}")
        case pg.LockNotAvailable():
            return MigrationError(f"others kept the tables locked, so nothing was changed: {text}")
        case pg.DiskFull():
            return MigrationError(f"the database has no room left to migrate: {text}")
        case pg.DuplicateTable():
            return MigrationError(f"the database has tables that no migration made: {text}")
        case psycopg.OperationalError(sqlstate=None):
            # libpq itself gave the error.
            return DatabaseUnreachableError(f"the database does not answer: {text}")
    if error.sqlstate and error.sqlstate.startswith(_GONE):
        return DatabaseUnreachableError(f"the database went away: {text}")
    return MigrationError(f"the migration failed and changed nothing: {text}")
