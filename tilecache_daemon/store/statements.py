"""Runs the statements of the query catalogue on one connection."""

from collections.abc import Mapping
from typing import Any, Final

from psycopg import AsyncCursor
from psycopg.rows import args_row

from tilecache_daemon.database import Connection
from tilecache_daemon.models import Tile
from tilecache_daemon.sql import load_queries

SQL: Final = {
    name: text.encode()
    for name, text in load_queries(
        "tiles", "blocks", "uploads", "freshness", "evictions", "usage", "database"
    ).items()
}


class Statements:
    """What every group of queries builds on."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def _execute(self, name: str, parameters: Mapping[str, Any] | None = None) -> None:
        await self._connection.execute(SQL[name], parameters)

    async def _rows(self, name: str, parameters: Mapping[str, Any] | None = None) -> list[Any]:
        cursor = await self._connection.execute(SQL[name], parameters)
        return await cursor.fetchall()

    async def _value(self, name: str, parameters: Mapping[str, Any] | None = None) -> Any:
        return (await self._rows(name, parameters))[0][0]

    async def _tiles(self, name: str, parameters: Mapping[str, Any]) -> list[Tile]:
        async with AsyncCursor(self._connection, row_factory=args_row(Tile)) as cursor:
            await cursor.execute(SQL[name], parameters, binary=True)
            return await cursor.fetchall()
