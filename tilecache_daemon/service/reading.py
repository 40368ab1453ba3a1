"""Reading tiles by id and by region."""

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Final

from tilecache.errors import FieldViolation
from tilecache.mercator import CellRectangle
from tilecache_daemon.cache.tile_cache import FoundTiles, RegionPart, TileCache
from tilecache_daemon.errors import LimitExceededError, TileNotFoundError
from tilecache_daemon.models import Limits, ListFilter, TileFilter
from tilecache_daemon.service.access_log import AccessLog
from tilecache_daemon.service.regions import bound_cells_aside
from tilecache_daemon.store.store import Store
from tilecache_daemon.store.tiles import ListedTiles

SCANNED_ROWS: Final = 50_000
"""Rows that are read for a page of a list. So many take some tens of milliseconds."""


class ReadingService:
    """Reads from the cache within the limits, and records accesses when asked to."""

    def __init__(self, store: Store, cache: TileCache, accesses: AccessLog, limits: Limits) -> None:
        self._store = store
        self._cache = cache
        self._accesses = accesses
        self._limits = limits

    async def get(self, tile_uuid: str, *, record_access: bool) -> tuple[bytes, bool]:
        """One tile's element, and whether it is degraded. Raises TileNotFoundError."""
        (element,), degraded = await self.lookup([tile_uuid], record_access=record_access)
        if element is None:
            raise TileNotFoundError(f"there is no tile {tile_uuid}", tile_uuid=tile_uuid)
        return element, degraded

    async def lookup(self, tile_uuids: Sequence[str], *, record_access: bool) -> FoundTiles:
        """An element or None for each id, in order."""
        found = await self._cache.find(tile_uuids)
        if record_access:
            self._accesses.record(
                tile_uuid
                for tile_uuid, element in zip(tile_uuids, found.elements, strict=True)
                if element is not None
            )
        return found

    async def touch(self, tile_uuids: Sequence[str]) -> list[bool]:
        """Records accesses; whether each tile is stored, in order."""
        found = await self.lookup(tile_uuids, record_access=True)
        return [element is not None for element in found.elements]

    async def list(self, wanted: ListFilter, after: int, page_size: int) -> ListedTiles:
        """A page of the tiles that pass a filter, in the order of their row ids after one. It may
        have fewer tiles than asked for, or none, and not be the last one."""
        async with self._store.connection() as queries:
            return await queries.tiles.list_tiles(wanted, after, page_size, SCANNED_ROWS)

    async def list_of_files(
        self, file_paths: Sequence[str], after: int, page_size: int
    ) -> ListedTiles:
        """A page of the tiles that name one of these files, in the order of their row ids."""
        async with self._store.connection() as queries:
            return await queries.tiles.list_tiles_of_files(file_paths, after, page_size)

    async def query(
        self, zoom: int, cells: Iterable[CellRectangle], wanted: TileFilter
    ) -> AsyncIterator[RegionPart]:
        """The tiles of a region that pass the filter, some at a time.

        Raises LimitExceededError before the first if the region has too many
        cells, and later if the answer has too many tiles.
        """
        bounded = await bound_cells_aside(cells, self._limits.max_region_cells)
        most = self._limits.max_answer_tiles
        left = wanted.limit or most + 1
        async for elements, degraded in self._cache.read_region(zoom, bounded, wanted):
            yield RegionPart(elements[:left], degraded)
            left -= len(elements)
            if left <= 0 and wanted.limit and wanted.limit <= most:
                return
            if left <= 0:
                raise LimitExceededError(FieldViolation("region", f"holds more than {most} tiles"))
