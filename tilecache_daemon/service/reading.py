"""Finding tiles."""

from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import datetime

from tilecache_daemon.access import AccessLog
from tilecache_daemon.errors import FieldViolation, LimitExceededError, TileNotFoundError
from tilecache_daemon.mercator import CellRectangle
from tilecache_daemon.models import FreshnessLabel, Limits, Tile, TileFilter, TileSelection
from tilecache_daemon.service.regions import bound_cells, split_cells
from tilecache_daemon.store import Store

_RANKS = {label.value: rank for rank, label in enumerate(FreshnessLabel)}


class ReadingService:
    """Reads by id and by region, and notes uses when asked to."""

    def __init__(self, store: Store, accesses: AccessLog, limits: Limits) -> None:
        self._store = store
        self._accesses = accesses
        self._limits = limits

    async def get(self, tile_uuid: str, *, record_access: bool) -> Tile:
        """One tile; raises TileNotFoundError if there is none."""
        (tile,) = await self.lookup([tile_uuid], record_access=record_access)
        if tile is None:
            raise TileNotFoundError(f"there is no tile {tile_uuid}", tile_uuid=tile_uuid)
        return tile

    async def lookup(self, tile_uuids: Sequence[str], *, record_access: bool) -> list[Tile | None]:
        """A tile or None for each id, in order."""
        async with self._store.connection() as queries:
            found = await queries.tiles.find_tiles(tile_uuids)
        if record_access:
            self._accesses.record(found)
        return [found.get(tile_uuid) for tile_uuid in tile_uuids]

    async def touch(self, tile_uuids: Sequence[str]) -> list[bool]:
        """Notes uses; whether each tile is there, in order."""
        tiles = await self.lookup(tile_uuids, record_access=True)
        return [tile is not None for tile in tiles]

    async def query(
        self, zoom: int, cells: Iterable[CellRectangle], wanted: TileFilter
    ) -> AsyncIterator[list[Tile]]:
        """The tiles of a region that pass the filter, some at a time.

        Raises LimitExceededError before the first if the region has too many
        cells, and later if the answer has too many tiles.
        """
        bounded = bound_cells(cells, self._limits.max_region_cells)
        room = self._limits.max_answer_tiles
        left = wanted.limit or room + 1
        for piece in split_cells(bounded):
            async with self._store.connection() as queries:
                rows = await queries.tiles.read_region(zoom, piece)
            tiles = select_tiles(rows, wanted)[:left]
            left -= len(tiles)
            room -= len(tiles)
            if room < 0:
                raise LimitExceededError(
                    FieldViolation(
                        "region", f"holds more than {self._limits.max_answer_tiles} tiles"
                    )
                )
            if tiles:
                yield tiles
            if left == 0:
                return


def select_tiles(rows: Iterable[Tile], wanted: TileFilter) -> list[Tile]:
    """Those that pass the filter; one a cell if so wanted."""
    tiles = [tile for tile in rows if _passes(tile, wanted)]
    if wanted.selection is TileSelection.ALL:
        return tiles
    best: dict[tuple[int, int], Tile] = {}
    for tile in tiles:
        rival = best.get((tile.x, tile.y))
        if rival is None or _merit(tile) > _merit(rival):
            best[tile.x, tile.y] = tile
    return list(best.values())


def _passes(tile: Tile, wanted: TileFilter) -> bool:
    return (
        (not wanted.labels or tile.freshness_label in wanted.labels)
        and (not wanted.sources or tile.source in wanted.sources)
        and (wanted.flight_id is None or tile.flight_id == wanted.flight_id)
        and (wanted.captured_after is None or tile.captured_at > wanted.captured_after)
    )


def _merit(tile: Tile) -> tuple[int, datetime, str]:
    return -_RANKS[tile.freshness_label], tile.captured_at, tile.tile_uuid
