"""Reading and storing tiles."""

from collections.abc import AsyncIterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from psycopg import errors

from tilecache.mercator import CellRectangle
from tilecache_daemon.models import FreshnessLabel, NewTile, Tile
from tilecache_daemon.store.binary_copy import HEADER, TRAILER, LabelledTile, pack_rows
from tilecache_daemon.store.statements import SQL, Statements
from tilecache_daemon.store.tile_columns import TileColumns

_SETTLING_LOCK: Final = 0x7469_6C65_7365  # "tilese": any number that nothing else locks


class Access(NamedTuple):
    """A use of a tile, and its place in the order of use."""

    id: int
    tile_uuid: str
    accessed_at: datetime
    access_order: int


class TileQueries(Statements):
    """The table of tiles."""

    async def find_tiles(self, tile_uuids: Sequence[str]) -> dict[str, Tile]:
        """The tiles that are there, by id."""
        tiles = await self._tiles("find_tiles", {"tile_uuids": list(tile_uuids)})
        return {tile.tile_uuid: tile for tile in tiles}

    async def lock_settling(self) -> None:
        """Keeps other writers from settling conflicts until the transaction ends."""
        await self._execute("lock_settling", {"key": _SETTLING_LOCK})

    async def lock_tiles(self, tile_uuids: Sequence[str]) -> dict[str, Tile]:
        """As `find_tiles`; the tiles stay as they are until the transaction ends."""
        tiles = await self._tiles("lock_tiles", {"tile_uuids": list(tile_uuids)})
        return {tile.tile_uuid: tile for tile in tiles}

    async def read_blocks(self, zoom: int, cells: Sequence[CellRectangle]) -> TileColumns:
        """The tiles in rectangles of which each lies in another block of 32 x 32 cells, in
        no promised order."""
        rows = await self._binary_rows("read_blocks", _region(zoom, cells))
        return TileColumns.read(rows)

    async def read_tiles(self, tile_uuids: Sequence[str]) -> TileColumns:
        """The tiles that are there, in no promised order."""
        rows = await self._binary_rows("read_tiles", {"tile_uuids": list(tile_uuids)})
        return TileColumns.read(rows)

    async def read_cell_labels(
        self, zoom: int, cells: Sequence[CellRectangle]
    ) -> list[tuple[int, int, str]]:
        """(y, x, label) for each label that occurs in each covered cell."""
        return await self._rows("read_cell_labels", _region(zoom, cells))

    async def copy_tiles(
        self, parts: AsyncIterable[Sequence[LabelledTile]], created_at: datetime
    ) -> bool:
        """Stores new tiles in bulk. False, and nothing stored, if one is there already."""
        try:
            async with self._connection.transaction():
                cursor = self._connection.cursor()
                async with cursor.copy(SQL["copy_tiles"]) as copy:
                    await copy.write(HEADER)
                    async for tiles in parts:
                        await copy.write(pack_rows(tiles, created_at))
                    await copy.write(TRAILER)
        except errors.UniqueViolation:
            return False
        return True

    async def insert_tiles(self, tiles: Sequence[LabelledTile], created_at: datetime) -> set[str]:
        """Stores those tiles that are not there yet; gives their ids."""
        columns: dict[str, Any] = {
            name: list(column)
            for name, column in zip(
                NewTile._fields, zip(*(tile for tile, _ in tiles), strict=True), strict=True
            )
        }
        columns |= {
            "captured_at": [tile.captured_at for tile, _ in tiles],
            "freshness_label": [label.value for _, label in tiles],
            "created_at": created_at,
        }
        return {row[0] for row in await self._rows("insert_tiles", columns)}

    async def replace_tile(self, tile: NewTile, label: FreshnessLabel) -> None:
        """Gives a stored tile another content, which waits for upload anew."""
        given = {"captured_at": tile.captured_at, "freshness_label": label.value}
        await self._execute("replace_tile", tile._asdict() | given)

    async def number_accesses(
        self, accesses: Mapping[str, datetime], recent: timedelta
    ) -> list[Access]:
        """Gives accesses, the earliest first, their places in the order of use. One within
        `recent` of a written one is left."""
        parameters = {
            "tile_uuids": list(accesses),
            "accessed_at": list(accesses.values()),
            "recent": recent,
        }
        return [Access(*row) for row in await self._rows("number_accesses", parameters)]

    async def write_accesses(self, accesses: Sequence[Access]) -> set[int]:
        """Gives the ids of the rows that it has written to: those that no other writer
        holds at the moment, and that were not used later."""
        parameters = {
            "ids": [access.id for access in accesses],
            "accessed_at": [access.accessed_at for access in accesses],
            "orders": [access.access_order for access in accesses],
        }
        return {row[0] for row in await self._rows("write_accesses", parameters)}


def _region(zoom: int, cells: Sequence[CellRectangle]) -> dict[str, Any]:
    # As text: psycopg takes a while to make an array of a list.
    columns = zip(CellRectangle._fields, zip(*cells, strict=True), strict=True)
    return {"zoom": zoom} | {name: f"{{{','.join(map(str, column))}}}" for name, column in columns}
