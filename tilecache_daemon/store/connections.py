"""Connections outside the pool, and timeouts for connections that no longer respond.

A frozen server, or a network that drops all packets, does not close a connection. A query on
it would wait forever, and cancelling it takes long, since psycopg sends the cancellation to
the same server. Therefore the connection's socket is shut down.
"""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Final

import psycopg
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow

from tilecache_daemon.sockets import shut_down

Connection = AsyncConnection[TupleRow]

ANSWER_TIMEOUT_S: Final = 2.0
"""How long a healthy server may take to accept a connection, or to answer."""


def connect_timeout_s(dsn: str) -> float:
    """How long connecting may take if some of the hosts in `dsn` do not respond."""
    hosts = conninfo_to_dict(dsn).get("host") or ""
    return ANSWER_TIMEOUT_S * (str(hosts).count(",") + 1)


async def connect(dsn: str, application_name: str) -> Connection:
    """Opens a connection outside the pool; raises psycopg.OperationalError if no host answers
    in time."""
    return await AsyncConnection.connect(
        dsn,
        autocommit=True,
        application_name=application_name,
        connect_timeout=round(ANSWER_TIMEOUT_S),
    )


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
