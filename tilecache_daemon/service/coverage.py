"""Coverage: which cells of a region are usable, stale or missing, and how old their tiles are."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tilecache.mercator import CellRectangle
from tilecache_daemon.geometry.masks import Bits, CellMasks, concatenate, mask_cells
from tilecache_daemon.models import USABLE_LABELS, FreshnessLabel, Limits, moment_of
from tilecache_daemon.service.regions import bound_cells
from tilecache_daemon.store.store import Store
from tilecache_daemon.store.tiles import BlockTiles
from tilecache_daemon.store.usage import UsageRow

BLOCKS_PER_STATEMENT: Final = 32

_LABELS: Final = [label.value for label in FreshnessLabel]
"""The best first: a label's rank is its index."""
_USABLE: Final = np.array([label in USABLE_LABELS for label in _LABELS])


class Captures(NamedTuple):
    """The capture times of some tiles."""

    oldest: datetime
    median: datetime
    newest: datetime


@dataclass(slots=True)
class Coverage:
    """The numbers of a region at a zoom, or at several (`zoom` is None then). A cell counts under
    the label of its best tile: the best label, then the newest capture."""

    zoom: int | None
    cell_count: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    usable_bytes: int = 0
    """Of the best tile of each usable cell, as the captures are."""
    captured_us: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    estimated_fetch_bytes: int | None = 0
    missing: CellMasks = field(default_factory=lambda: mask_cells([]))
    stale: CellMasks = field(default_factory=lambda: mask_cells([]))

    @property
    def covered_count(self) -> int:
        return self.labels.total()

    @property
    def usable_count(self) -> int:
        return sum(self.labels[label] for label in USABLE_LABELS)

    @property
    def captures(self) -> Captures | None:
        """None if no cell is usable. Of an even number the earlier middle one is the median."""
        times = self.captured_us
        if not times.size:
            return None
        middle = (times.size - 1) // 2
        parted = np.partition(times, [0, middle, times.size - 1])
        return Captures(*(moment_of(int(parted[index])) for index in (0, middle, -1)))

    def add(self, other: "Coverage") -> None:
        """Adds the numbers of another zoom; not its cells."""
        self.cell_count += other.cell_count
        self.labels += other.labels
        self.usable_bytes += other.usable_bytes
        self.captured_us = np.concatenate([self.captured_us, other.captured_us])
        if self.estimated_fetch_bytes is not None and other.estimated_fetch_bytes is not None:
            self.estimated_fetch_bytes += other.estimated_fetch_bytes
        else:
            self.estimated_fetch_bytes = None


class CoverageService:
    """Describes coverage."""

    def __init__(self, store: Store, limits: Limits) -> None:
        self._store = store
        self._limits = limits

    async def describe(
        self, regions: Sequence[tuple[int, Iterable[CellRectangle]]], at: datetime | None
    ) -> AsyncIterator[Coverage]:
        """The coverage of each zoom's cells by the labels at a time, by the rules of now, or by
        the stored ones. Raises LimitExceededError if there are too many cells."""
        masks = await asyncio.to_thread(self.mask, regions)
        async for coverage in self.describe_masks(masks, at):
            yield coverage

    async def describe_masks(
        self, masks: Sequence[tuple[int, CellMasks]], at: datetime | None
    ) -> AsyncIterator[Coverage]:
        """As `describe`."""
        async with self._store.connection() as queries:
            usage = await queries.usage.read_usage()
        for zoom, cells in masks:
            yield await self._describe(zoom, cells, at, usage)

    def mask(
        self, regions: Sequence[tuple[int, Iterable[CellRectangle]]]
    ) -> list[tuple[int, CellMasks]]:
        """The cells of each zoom. Takes long for outlines: to be called in a thread."""
        left, masks = self._limits.max_region_cells, []
        for zoom, cells in regions:
            masks.append((zoom, mask_cells(bound_cells(cells, left))))
            left -= masks[-1][1].cell_count
        return masks

    async def _describe(
        self, zoom: int, cells: CellMasks, at: datetime | None, usage: Sequence[UsageRow]
    ) -> Coverage:
        coverage = Coverage(zoom, cells.cell_count)
        missing, stale, captured = [], [], []
        for start in range(0, cells.x.size, BLOCKS_PER_STATEMENT):
            part = cells.part(start, start + BLOCKS_PER_STATEMENT)
            async with self._store.connection() as queries:
                blocks = await queries.tiles.read_block_tiles(zoom, list(part.bounds()), at)
            wanted = part.bits()
            best = _best_tiles(wanted, blocks)
            usable = _USABLE[best.rank]
            counts = np.bincount(best.rank, minlength=len(_LABELS)).tolist()
            coverage.labels.update(dict(zip(_LABELS, counts, strict=True)))
            coverage.usable_bytes += sum(best.disk_bytes[usable].tolist())
            captured.append(best.captured_us[usable])
            missing.append(part.having(wanted & ~_bits_of(best.cell, wanted)))
            stale.append(part.having(_bits_of(best.cell[~usable], wanted)))
        coverage.captured_us = np.concatenate(captured or [coverage.captured_us])
        coverage.missing, coverage.stale = concatenate(missing), concatenate(stale)
        coverage.estimated_fetch_bytes = _estimate_bytes(
            zoom, coverage.cell_count - coverage.usable_count, usage
        )
        return coverage


def _best_tiles(wanted: Bits, tiles: BlockTiles) -> BlockTiles:
    """The best tile of each wanted cell that has one."""
    inside = np.flatnonzero(wanted.ravel()[tiles.cell])
    cell, rank, captured = (
        column[inside] for column in (tiles.cell, tiles.rank, tiles.captured_us)
    )
    # Not the negative, which does not exist for -infinity.
    order = np.lexsort((~captured, rank, cell))
    first = np.diff(cell[order], prepend=-1) != 0
    chosen = inside[order[first]]
    return BlockTiles(*(column[chosen] for column in tiles))


def _bits_of(cells: NDArray[np.int64], like: Bits) -> Bits:
    bits = np.zeros(like.size, dtype=np.bool_)
    bits[cells] = True
    return bits.reshape(like.shape)


def _estimate_bytes(zoom: int, cell_count: int, usage: Sequence[UsageRow]) -> int | None:
    """About how many bytes the tiles of some cells take; None without a tile to go by."""
    for rows in ([row for row in usage if row.zoom == zoom], usage):
        tiles = sum(row.tile_count - row.unknown_size_count for row in rows)
        if tiles > 0:
            return round(cell_count * sum(row.used_bytes for row in rows) / tiles)
    return None if cell_count else 0
