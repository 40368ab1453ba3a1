"""Connections beside the pool, and the end of those that have fallen silent.

A frozen server, or a network that drops everything, ends no connection: whoever
waits on one would wait for ever, and cannot even be cancelled quickly, since
psycopg then asks the same server to cancel. So the connection is cut under it.
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
"""How long a living server may take to be connected with, or to answer."""


def connect_timeout_s(dsn: str) -> float:
    """How long connecting may take where some of the address's hosts are silent."""
    hosts = conninfo_to_dict(dsn).get("host") or ""
    return ANSWER_TIMEOUT_S * (str(hosts).count(",") + 1)


async def connect(dsn: str, application_name: str) -> Connection:
    """A connection of its own. Raises psycopg.OperationalError if no host answers in time."""
    return await AsyncConnection.connect(
        dsn,
        autocommit=True,
        application_name=application_name,
        connect_timeout=round(ANSWER_TIMEOUT_S),
    )


async def ask(connection: Connection, statement: str = "SELECT 1") -> None:
    """Returns when the server has done what takes it no time; raises
    psycopg.OperationalError if it does not answer soon."""
    with cut_after(connection, ANSWER_TIMEOUT_S):
        await connection.execute(statement.encode())


@contextlib.contextmanager
def cut_after(connection: Connection, timeout_s: float) -> Iterator[None]:
    """Cuts the connection if the block takes longer; what waits on it then fails."""
    timer = asyncio.get_running_loop().call_later(timeout_s, cut, connection)
    try:
        yield
    finally:
        timer.cancel()


def cut(connection: Connection) -> None:
    """Ends a connection under whoever waits on it. Idempotent."""
    with contextlib.suppress(psycopg.Error, OSError):
        shut_down(connection.fileno())
