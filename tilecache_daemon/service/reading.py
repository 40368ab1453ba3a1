"""Finding tiles."""

from collections.abc import AsyncIterator, Iterable

from tilecache.errors import FieldViolation
from tilecache.mercator import CellRectangle
from tilecache_daemon.cache.blocks import Slice
from tilecache_daemon.cache.tile_cache import Found, RegionPart, TileCache
from tilecache_daemon.errors import LimitExceededError, TileNotFoundError
from tilecache_daemon.models import Limits, TileFilter
from tilecache_daemon.service.access_log import AccessLog
from tilecache_daemon.service.regions import bound_cells
from tilecache_daemon.store.tile_ids import TileIds


class ReadingService:
    """Reads by id and by region, and notes uses when asked to."""

    def __init__(self, cache: TileCache, accesses: AccessLog, limits: Limits) -> None:
        self._cache = cache
        self._accesses = accesses
        self._limits = limits

    def get_held(self, tile_uuid: str, *, record_access: bool) -> tuple[bytes, bool] | None:
        """As `get`, if nobody has to be waited for; None otherwise."""
        held = self._cache.find_held(tile_uuid)
        if held and record_access:
            self._accesses.record([tile_uuid])
        return held

    async def get(self, tile_uuid: str, *, record_access: bool) -> tuple[bytes, bool]:
        """One tile's element, and whether it is degraded; raises TileNotFoundError if
        there is no such tile."""
        (element,), degraded = await self.lookup(
            TileIds.of([tile_uuid]), record_access=record_access
        )
        if element is None:
            raise TileNotFoundError(f"there is no tile {tile_uuid}", tile_uuid=tile_uuid)
        return bytes(element), degraded

    async def lookup(self, tile_ids: TileIds, *, record_access: bool) -> Found:
        """An element or None for each id, in order."""
        found = await self._cache.find(tile_ids)
        if record_access:
            self._accesses.record(
                tile_uuid
                for tile_uuid, element in zip(tile_ids.texts, found.elements, strict=True)
                if element is not None
            )
        return found

    async def touch(self, tile_ids: TileIds) -> list[bool]:
        """Notes uses; whether each tile is there, in order."""
        found = await self.lookup(tile_ids, record_access=True)
        return [element is not None for element in found.elements]

    async def query(
        self, zoom: int, cells: Iterable[CellRectangle], wanted: TileFilter
    ) -> AsyncIterator[RegionPart]:
        """The tiles of a region that pass the filter, some at a time.

        Raises LimitExceededError before the first if the region has too many
        cells, and later if the answer has too many tiles.
        """
        bounded = bound_cells(cells, self._limits.max_region_cells)
        most = self._limits.max_answer_tiles
        left = wanted.limit or most + 1
        async for slices, degraded in self._cache.read_region(zoom, bounded, wanted):
            count = sum(piece.tile_count for piece in slices)
            yield RegionPart(slices if count <= left else _first(slices, left), degraded)
            left -= count
            if left <= 0 and wanted.limit and wanted.limit <= most:
                return
            if left <= 0:
                raise LimitExceededError(FieldViolation("region", f"holds more than {most} tiles"))


def _first(slices: Iterable[Slice], count: int) -> list[Slice]:
    """So many tiles of some slices."""
    chosen = []
    for piece in slices:
        if count <= 0:
            break
        chosen.append(piece.first(min(count, piece.tile_count)))
        count -= piece.tile_count
    return chosen
