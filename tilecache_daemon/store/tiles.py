"""Reading and storing tiles."""

from collections.abc import AsyncIterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from psycopg import errors

from tilecache.mercator import BLOCK_CELLS, CellRectangle
from tilecache_daemon.models import FreshnessLabel, ListFilter, NewTile, Tile, TileUpdate
from tilecache_daemon.store.binary_copy import HEADER, TRAILER, LabelledTile, pack_rows
from tilecache_daemon.store.statements import SQL, Statements
from tilecache_daemon.store.tile_columns import TileColumns

_CONFLICT_LOCK: Final = 0x7469_6C65_7365  # the key of an advisory lock, unique to this use


class Access(NamedTuple):
    """An access of a tile, and its position in the order of use."""

    id: int
    tile_uuid: str
    accessed_at: datetime
    access_order: int


class BlockTiles(NamedTuple):
    """Tiles of some blocks: their cells (the block's index times 1,024 plus the cell's index in
    it, row by row), the indexes of their labels in `FreshnessLabel`, capture times in microseconds
    since 2000, and sizes, 0 if unknown."""

    cell: NDArray[np.int64]
    rank: NDArray[np.int64]
    captured_us: NDArray[np.int64]
    disk_bytes: NDArray[np.int64]


class Comparison(NamedTuple):
    """How a stored tile compares with a correction."""

    has_content: bool
    """It has the content that the correction is for."""
    differs: bool
    """The correction would change it."""


class ListedTiles(NamedTuple):
    """A page of tiles."""

    tiles: TileColumns
    ids: list[int]
    """Their row ids, which rise."""
    last_id: int
    """Where the next page begins."""
    is_last: bool


_BLOCK_TILE: Final = np.dtype([("code", ">i2"), ("captured_us", ">i8"), ("disk_bytes", ">i8")])


class TileQueries(Statements):
    """Queries on the table of tiles."""

    async def find_tiles(self, tile_uuids: Sequence[str]) -> dict[str, Tile]:
        """The stored tiles with these ids, by id."""
        tiles = await self._tiles("find_tiles", {"tile_uuids": list(tile_uuids)})
        return {tile.tile_uuid: tile for tile in tiles}

    async def lock_conflict_resolution(self) -> None:
        """Keeps other writers from resolving conflicts until the transaction ends."""
        await self._execute("lock_conflict_resolution", {"key": _CONFLICT_LOCK})

    async def lock_tiles(self, tile_uuids: Sequence[str]) -> dict[str, Tile]:
        """As `find_tiles`; the rows are locked until the transaction ends."""
        tiles = await self._tiles("lock_tiles", {"tile_uuids": list(tile_uuids)})
        return {tile.tile_uuid: tile for tile in tiles}

    async def read_blocks(self, zoom: int, cells: Sequence[CellRectangle]) -> TileColumns:
        """The tiles in some rectangles, each within a different block of 32 x 32 cells. The
        order is unspecified."""
        rows = await self._binary_rows("read_blocks", _region(zoom, cells))
        return TileColumns.read(rows)

    async def read_tiles(self, tile_uuids: Sequence[str]) -> TileColumns:
        """The stored tiles with these ids. The order is unspecified."""
        rows = await self._binary_rows("read_tiles", {"tile_uuids": list(tile_uuids)})
        return TileColumns.read(rows)

    async def list_tiles(
        self, wanted: ListFilter, after: int, limit: int, scan_limit: int
    ) -> ListedTiles:
        """A page of the tiles that pass a filter, by row id, after a row id. At most `scan_limit`
        rows are read, so a page that is not full may not be the last one."""
        parameters = wanted._asdict() | {
            "after": after,
            "limit": limit,
            "scan_limit": scan_limit,
        }
        ((*records, ids, scanned),) = await self._binary_rows("list_tiles", parameters)
        tiles = TileColumns.read([tuple(records)] if ids else [])
        last, count = scanned or (ids[-1], scan_limit)
        return ListedTiles(tiles, ids, last, count < scan_limit)

    async def list_tiles_of_files(
        self, file_paths: Sequence[str], after: int, limit: int
    ) -> ListedTiles:
        """A page of the tiles that name one of these files, by row id, after a row id."""
        parameters = {"file_paths": list(file_paths), "after": after, "limit": limit}
        ((*records, ids),) = await self._binary_rows("list_tiles_of_files", parameters)
        tiles = TileColumns.read([tuple(records)] if ids else [])
        return ListedTiles(tiles, ids, ids[-1] if ids else after, len(ids) < limit)

    async def read_block_tiles(
        self, zoom: int, cells: Sequence[CellRectangle], at: datetime | None
    ) -> BlockTiles:
        """The tiles in some rectangles, each within a different block. Their labels are those
        that they have at a time by the rules of now, or the stored ones."""
        name = "read_block_tiles" if at is None else "read_block_tiles_at"
        rows = await self._binary_rows(name, _region(zoom, cells) | {"now": at})
        tiles = np.frombuffer(b"".join(row[0] for row in rows), dtype=_BLOCK_TILE)
        counts = [len(row[0]) // _BLOCK_TILE.itemsize for row in rows]
        block = np.repeat(np.arange(len(rows)) * BLOCK_CELLS * BLOCK_CELLS, counts)
        code = tiles["code"].astype(np.int64)
        return BlockTiles(
            block + (code >> 3),
            code & 7,
            tiles["captured_us"].astype(np.int64),
            tiles["disk_bytes"].astype(np.int64),
        )

    async def copy_tiles(
        self, parts: AsyncIterable[Sequence[LabelledTile]], created_at: datetime
    ) -> bool:
        """Stores new tiles in bulk. Returns False, having stored none, if one of the keys is
        stored already."""
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
        """Stores the tiles whose keys are not stored yet; returns their ids."""
        columns: dict[str, Any] = {
            name: list(column)
            for name, column in zip(
                NewTile._fields, zip(*(tile for tile, _ in tiles), strict=True), strict=True
            )
        }
        columns |= {
            "captured_at": [tile.captured_at for tile, _ in tiles],
            "uploaded_at": [tile.uploaded_at for tile, _ in tiles],
            "freshness_label": [label.value for _, label in tiles],
            "created_at": created_at,
        }
        return {row[0] for row in await self._rows("insert_tiles", columns)}

    async def replace_tile(self, tile: NewTile, label: FreshnessLabel) -> None:
        """Replaces the content of a stored tile; different content waits for upload again, unless
        the new tile was uploaded."""
        given = {
            "captured_at": tile.captured_at,
            "uploaded_at": tile.uploaded_at,
            "freshness_label": label.value,
        }
        await self._execute("replace_tile", tile._asdict() | given)

    async def compare_updates(self, updates: Sequence[TileUpdate]) -> dict[str, Comparison]:
        """How the stored tiles with these ids compare with corrections, by id. Their rows are
        locked until the transaction ends."""
        rows = await self._rows("compare_updates", _update_columns(updates))
        return {row[0]: Comparison(*row[1:]) for row in rows}

    async def update_tiles(
        self, updates: Sequence[TileUpdate], now: datetime, *, clock_trusted: bool
    ) -> None:
        """Corrects tiles, whatever their content, and relabels them; needs
        `lock_policy_for_share` and `lock_files_for_naming`."""
        parameters = {"now": now, "clock_trusted": clock_trusted}
        await self._execute("update_tiles", _update_columns(updates) | parameters)

    async def number_accesses(
        self, accesses: Mapping[str, datetime], recent: timedelta
    ) -> list[Access]:
        """Assigns positions in the order of use to accesses, earliest first. Skips an access
        within `recent` after the one that is written."""
        parameters = {
            "tile_uuids": list(accesses),
            "accessed_at": list(accesses.values()),
            "recent": recent,
        }
        return [Access(*row) for row in await self._rows("number_accesses", parameters)]

    async def write_accesses(self, accesses: Sequence[Access]) -> set[int]:
        """Writes accesses; returns the ids of the updated rows. Skips rows that another writer
        has locked, and rows with a later access."""
        parameters = {
            "ids": [access.id for access in accesses],
            "accessed_at": [access.accessed_at for access in accesses],
            "orders": [access.access_order for access in accesses],
        }
        return {row[0] for row in await self._rows("write_accesses", parameters)}


def _update_columns(updates: Sequence[TileUpdate]) -> dict[str, Any]:
    columns = zip(*updates, strict=True)
    return dict(zip(TileUpdate._fields, map(list, columns), strict=True))


def _region(zoom: int, cells: Sequence[CellRectangle]) -> dict[str, Any]:
    # As text, because psycopg's conversion of lists to arrays is slow.
    columns = zip(CellRectangle._fields, zip(*cells, strict=True), strict=True)
    return {"zoom": zoom} | {name: f"{{{','.join(map(str, column))}}}" for name, column in columns}
