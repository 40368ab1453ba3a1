"""Connections outside the pool, and timeouts for connections that no longer respond.

A frozen server, or a network that drops all packets, does not close a connection. A query on
it would wait forever, and cancelling it takes long, since psycopg sends the cancellation to
the same server. Therefore the connection's socket is shut down.
"""

import asyncio
import contextlib
import select
from collections.abc import Iterator
from typing import Any, Final

import psycopg
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow

from tilecache_daemon.sockets import shut_down

Connection = AsyncConnection[TupleRow]

ANSWER_TIMEOUT_S: Final = 2.0
"""How long a healthy server may take to accept a connection, or to answer."""
_KEEPALIVES: Final = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 2}
"""So that firewalls do not forget idle connections, and lost ones are noticed; in seconds. The
address may set others. There is no `tcp_user_timeout`: a server that waits for a lock in a COPY
reads nothing meanwhile."""
_SERVER_KEEPALIVES: Final = {
    "tcp_keepalives_idle": 5,
    "tcp_keepalives_interval": 5,
    "tcp_user_timeout": 10_000,
}
"""So that PostgreSQL ends a session, and releases its locks, ten seconds after the network has lost
it; the last in milliseconds. On a Unix socket they have no effect."""


def connect_timeout_s(dsn: str) -> float:
    """How long connecting may take if some of the hosts in `dsn` do not respond."""
    hosts = conninfo_to_dict(dsn).get("host") or ""
    return ANSWER_TIMEOUT_S * (str(hosts).count(",") + 1)


def connection_parameters(dsn: str, application_name: str) -> dict[str, Any]:
    """What is passed to psycopg beside the address."""
    own = {
        "autocommit": True,
        "application_name": application_name,
        "client_encoding": "UTF8",
        "connect_timeout": round(ANSWER_TIMEOUT_S),
    }
    return _KEEPALIVES | conninfo_to_dict(dsn) | own


async def connect(dsn: str, application_name: str) -> Connection:
    """Opens a connection outside the pool; raises psycopg.OperationalError if no host answers
    in time."""
    connection = await AsyncConnection.connect(**connection_parameters(dsn, application_name))
    try:
        await set_session(connection)
    except BaseException:
        await connection.close()
        raise
    return connection


async def set_session(
    connection: Connection, statement_timeout_s: float = 0, idle_in_transaction_s: float = 0
) -> None:
    """Replaces what is set for the role or the database by the daemon's own values. As
    statements, because poolers refuse the parameter `options`. 0 is no timeout."""
    settings: dict[str, str | int] = {
        "statement_timeout": round(statement_timeout_s * 1000),
        "idle_in_transaction_session_timeout": round(idle_in_transaction_s * 1000),
        "idle_session_timeout": 0,
        "lock_timeout": 0,
        # In other time zones, times on the first and last day of Python's calendar overflow.
        "timezone": "'UTC'",
        "datestyle": "'ISO'",
        "default_transaction_isolation": "'read committed'",
    }
    settings |= _SERVER_KEEPALIVES
    if connection.info.server_version >= 170000:
        settings["transaction_timeout"] = 0
    statements = "; ".join(f"SET {name} = {value}" for name, value in settings.items())
    with cut_after(connection, ANSWER_TIMEOUT_S):
        await connection.execute(statements.encode())


def has_ended(connection: Connection) -> bool:
    """Whether the other side has closed an idle connection, without asking it. On an idle
    connection there is nothing to read but its end, or notices that nobody needs."""
    if connection.closed:
        return True
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


async def execute_promptly(connection: Connection, statement: str = "SELECT 1") -> None:
    """Executes a statement that takes no time; raises psycopg.OperationalError if the server
    does not answer within ANSWER_TIMEOUT_S."""
    with cut_after(connection, ANSWER_TIMEOUT_S):
        await connection.execute(statement.encode())


@contextlib.contextmanager
def cut_after(connection: Connection, timeout_s: float) -> Iterator[None]:
    """Cuts the connection if the block takes longer; queries on it then fail."""
    timer = asyncio.get_running_loop().call_later(timeout_s, cut, connection)
    try:
        yield
    finally:
        timer.cancel()


def cut(connection: Connection) -> None:
    """Shuts down a connection's socket, so that queries on it fail. Idempotent."""
    with contextlib.suppress(psycopg.Error, OSError):
        shut_down(connection.fileno())
