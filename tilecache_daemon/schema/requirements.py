"""What the database must offer, checked before it is migrated or used.

Each check raises MigrationError with a sentence that says what to do.
"""

from collections.abc import Callable
from contextlib import ExitStack, closing
from threading import Timer
from typing import Any, Final

import psycopg
from psycopg.sql import SQL, Identifier, Literal

from tilecache_daemon.errors import MigrationError
from tilecache_daemon.schema.connection import DatabaseUnreachableError, Interruption

OTHER_CONNECTIONS: Final = 2
"""Beside the pool: the change feed and the probe. A migration needs as many, before they exist."""

_POOLER_TIMEOUT_S: Final = 5.0
"""How long a pooler may take to give a connection."""

_PRIVILEGES: Final = {
    "alembic_version": ("SELECT",),
    "tiles": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "sector_classifications": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "tile_freshness_rules": ("SELECT", "INSERT", "UPDATE"),
    "tile_evictions": ("SELECT", "INSERT", "DELETE"),
    "tile_usage": ("SELECT", "INSERT", "DELETE"),
    "tile_flight_usage": ("SELECT", "INSERT", "DELETE"),
    "flights": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "tile_pins": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "tile_pin_blocks": ("SELECT", "INSERT"),
}
_SEQUENCE: Final = "tile_access_order_seq"
"""The only sequence that is a column's default. Those of identity columns need no privilege."""

_MISSING_ON_TABLES: Final = """
    SELECT c.relname, array_agg(wanted.privilege ORDER BY wanted.position)
    FROM unnest(%s::text[], %s::text[]) WITH ORDINALITY AS wanted (name, privilege, position)
    JOIN pg_class c ON c.relname = wanted.name AND pg_table_is_visible(c.oid)
    WHERE NOT has_table_privilege(c.oid, wanted.privilege)
    GROUP BY c.relname
    ORDER BY min(wanted.position)
"""
_MISSING_ON_SEQUENCE: Final = """
    SELECT FROM pg_class
    WHERE relname = %s AND pg_table_is_visible(oid) AND NOT has_sequence_privilege(oid, 'USAGE')
"""
# Tables in a schema that the role may not use are not found by their names.
_HIDDEN_SCHEMA: Final = """
    SELECT n.nspname
    FROM pg_namespace n
    WHERE NOT has_schema_privilege(n.oid, 'USAGE')
      AND (
          SELECT count(*) FROM pg_class c
          WHERE c.relnamespace = n.oid AND c.relname IN ('alembic_version', 'tiles')
      ) = 2
      AND to_regclass('alembic_version') IS NULL
"""
_CONNECTION_LIMITS: Final = """
    SELECT r.rolsuper, current_setting('max_connections')::int,
           current_setting('superuser_reserved_connections')::int
               + coalesce(current_setting('reserved_connections', true)::int, 0),
           r.rolconnlimit, d.datconnlimit
    FROM pg_roles r, pg_database d
    WHERE r.rolname = session_user AND d.datname = current_database()
"""


def check_server(
    connection: psycopg.Connection[Any], connect: Callable[[], psycopg.Connection[Any]]
) -> None:
    """Checks the encoding, that no pooler shares sessions, and that writes are accepted.

    `connect` opens another connection. Raises MigrationError; DatabaseUnreachableError for a
    standby, since it may be promoted.
    """
    _check_encoding(connection)
    _check_pooler(connection, connect)
    in_recovery, read_only = _row(
        connection, "SELECT pg_is_in_recovery(), current_setting('transaction_read_only')::bool"
    )
    if in_recovery:
        raise DatabaseUnreachableError(
            "PostgreSQL at this address is a standby, which accepts no writes: name the primary in "
            "dsn, or all hosts with target_session_attrs=read-write"
        )
    if read_only:
        raise MigrationError(
            "PostgreSQL accepts no writes from this role: default_transaction_read_only is on"
        )


def check_privileges(connection: psycopg.Connection[Any]) -> None:
    """Checks what the role may do with the tables that exist; raises MigrationError, with the
    statements that grant what is missing."""
    role = Identifier(_row(connection, "SELECT current_user")[0])
    grants = [
        SQL("GRANT USAGE ON SCHEMA {} TO {}").format(Identifier(name), role)
        for (name,) in connection.execute(_HIDDEN_SCHEMA)
    ]
    wanted = [(table, name) for table, names in _PRIVILEGES.items() for name in names]
    for table, privileges in connection.execute(
        _MISSING_ON_TABLES, list(map(list, zip(*wanted, strict=True)))
    ):
        names = SQL(", ").join(map(SQL, privileges))
        grants.append(SQL("GRANT {} ON {} TO {}").format(names, Identifier(table), role))
    if connection.execute(_MISSING_ON_SEQUENCE, [_SEQUENCE]).rowcount:
        grants.append(SQL("GRANT USAGE ON SEQUENCE {} TO {}").format(Identifier(_SEQUENCE), role))
    if grants:
        statements = SQL("; ").join(grants).as_string(connection)
        raise MigrationError(
            "the database user lacks privileges; the owner of the tables grants them with: "
            f"{statements}"
        )


def check_connection_limit(
    connection: psycopg.Connection[Any],
    pool_max_size: int,
    connect: Callable[[Interruption], psycopg.Connection[Any]],
) -> None:
    """Checks that the role may open as many connections as the daemon may need; raises
    MigrationError.

    A pooler does not say how many it gives, so they are opened: `connect` opens one that can
    be interrupted.
    """
    superuser, server, reserved, role, database = _row(connection, _CONNECTION_LIMITS)
    limits = {"max_connections": server}
    if not superuser:
        limits["max_connections"] -= reserved
        if role >= 0:
            limits["the role's CONNECTION LIMIT"] = role
        if database >= 0:
            limits["the database's CONNECTION LIMIT"] = database
    name, limit = min(limits.items(), key=lambda entry: entry[1])
    needed = pool_max_size + OTHER_CONNECTIONS
    if limit < needed:
        raise MigrationError(
            f"the daemon needs {needed} connections (pool_max_size and {OTHER_CONNECTIONS} more), "
            f"but {name} leaves it {limit}: raise that limit, or lower pool_max_size"
        )
    if _is_pooled(connection) and (given := 1 + _count_openable(connect, needed - 1)) < needed:
        raise MigrationError(
            f"the daemon needs {needed} connections (pool_max_size and {OTHER_CONNECTIONS} more), "
            f"but the connection pooler that dsn leads to gives it {given}: raise its limits "
            "(PgBouncer's default_pool_size and max_client_conn), or lower pool_max_size"
        )


def _check_encoding(connection: psycopg.Connection[Any]) -> None:
    encoding = connection.info.parameter_status("server_encoding")
    if encoding == "UTF8":
        return
    name = connection.info.dbname
    create = SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING {} LOCALE {}").format(
        Identifier(name), Literal("UTF8"), Literal("C")
    )
    raise MigrationError(
        f"the database {name} has the encoding {encoding}, not UTF8; nothing was changed: drop it, "
        f"or choose another name, and create it with: {create.as_string(connection)}"
    )


def _check_pooler(
    connection: psycopg.Connection[Any], connect: Callable[[], psycopg.Connection[Any]]
) -> None:
    """A pooler shares sessions between transactions if another connection gets the same
    session, or one connection different ones."""
    if not _is_pooled(connection):
        return
    first = _backend_pid(connection)
    with closing(connect()) as other:
        other.execute("BEGIN")
        shared = _backend_pid(other) == first or _backend_pid(connection) != first
        other.execute("ROLLBACK")
    if shared:
        raise MigrationError(
            "dsn leads to a connection pooler that shares sessions between transactions (PgBouncer "
            "with pool_mode=transaction), where LISTEN and prepared statements do not work: use "
            "PostgreSQL's own address, or pool_mode=session"
        )


def _is_pooled(connection: psycopg.Connection[Any]) -> bool:
    """Whether the connection leads to a pooler, which announces a process id of its own."""
    return _backend_pid(connection) != connection.info.backend_pid


def _count_openable(connect: Callable[[Interruption], psycopg.Connection[Any]], wanted: int) -> int:
    """How many connections can be used at once, up to `wanted`. One for which a pooler has no
    session waits at its first statement."""
    with ExitStack() as opened:
        for count in range(wanted):
            interruption = Interruption()
            timer = Timer(_POOLER_TIMEOUT_S, interruption.request)
            timer.start()
            try:
                opened.enter_context(closing(connect(interruption)))
            except psycopg.Error:
                return count
            finally:
                timer.cancel()
    return wanted


def _backend_pid(connection: psycopg.Connection[Any]) -> int:
    pid: int = _row(connection, "SELECT pg_backend_pid()")[0]
    return pid


def _row(connection: psycopg.Connection[Any], query: str) -> tuple[Any, ...]:
    row: tuple[Any, ...] | None = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row
