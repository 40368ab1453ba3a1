"""Execution of the query catalogue's statements on one connection."""

from collections.abc import Mapping
from typing import Any, Final

from tilecache_daemon.models import Tile
from tilecache_daemon.store.connections import Connection
from tilecache_daemon.store.sql import load_queries

SQL: Final = {
    name: text.encode()
    for name, text in load_queries(
        *("tiles", "blocks", "uploads", "freshness", "evictions"),
        *("pins", "flights", "usage", "digests", "database"),
    ).items()
}


class Statements:
    """The base class of all groups of queries."""

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
        return list(map(Tile._make, await self._binary_rows(name, parameters)))

    async def _binary_rows(
        self, name: str, parameters: Mapping[str, Any], *, lock: bool = False
    ) -> list[Any]:
        """Rows whose times are microseconds since 2000. With `lock`, the rows of `t` are locked
        until the transaction ends."""
        statement = SQL[name] + b" FOR UPDATE OF t" if lock else SQL[name]
        cursor = await self._connection.execute(statement, parameters, binary=True)
        return await cursor.fetchall()
