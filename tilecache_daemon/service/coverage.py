"""Coverage: which cells of a region have a tile, how fresh its best one is, which have none."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tilecache.mercator import (
    BLOCK_CELLS,
    BlockKey,
    CellRectangle,
    blocks_in,
    bounds_of,
    count_cells,
)
from tilecache_daemon.models import FreshnessLabel, Limits
from tilecache_daemon.service.regions import bound_cells_aside
from tilecache_daemon.store.store import Store

BLOCKS_PER_STATEMENT: Final = 32

_LABELS: Final = [label.value for label in FreshnessLabel]
"""The best first: a label's rank is its index."""
_MISSING: Final = 255

Grid = NDArray[np.uint8]
"""The rank of the best label in each cell, row by row; _MISSING where there is no tile."""


class _Part(NamedTuple):
    """The area of a rectangle that lies in one block."""

    area: CellRectangle
    whole: CellRectangle
    grid: Grid


@dataclass(slots=True)
class Coverage:
    """The numbers of a region; a cell counts under the label of its best tile."""

    cell_count: int
    labels: Counter[str] = field(default_factory=Counter)
    missing: list[CellRectangle] = field(default_factory=list)

    @property
    def covered_count(self) -> int:
        return self.labels.total()


class CoverageService:
    """Describes coverage."""

    def __init__(self, store: Store, limits: Limits) -> None:
        self._store = store
        self._limits = limits

    async def describe(self, zoom: int, cells: Iterable[CellRectangle]) -> Coverage:
        """Raises LimitExceededError if the region has too many cells."""
        bounded = await bound_cells_aside(cells, self._limits.max_region_cells)
        grids = await self._read_grids(zoom, bounded)
        coverage = Coverage(count_cells(bounded))
        missing: list[CellRectangle] = []
        for rectangle, grid in zip(bounded, grids, strict=True):
            counts = np.bincount(grid.ravel(), minlength=len(_LABELS)).tolist()
            coverage.labels.update(dict(zip(_LABELS, counts, strict=False)))
            missing += _missing_runs(rectangle, grid)
        coverage.missing = _merge_rows(missing)
        return coverage

    async def _read_grids(self, zoom: int, rectangles: Sequence[CellRectangle]) -> list[Grid]:
        """A grid for each rectangle, read block by block."""
        grids = [_empty_grid(rectangle) for rectangle in rectangles]
        parts: dict[BlockKey, list[_Part]] = {}
        for whole, grid in zip(rectangles, grids, strict=True):
            for key, areas in blocks_in(zoom, [whole]).items():
                parts.setdefault(key, []).extend(_Part(area, whole, grid) for area in areas)
        blocks = iter(parts.values())
        while some := list(islice(blocks, BLOCKS_PER_STATEMENT)):
            bounds = [bounds_of([part.area for part in block]) for block in some]
            async with self._store.connection() as queries:
                codes = await queries.tiles.read_block_labels(zoom, bounds)
            for block, block_codes in zip(some, codes, strict=True):
                labels = _block_grid(block_codes)
                for area, whole, grid in block:
                    corner = (area.x_from % BLOCK_CELLS, area.y_from % BLOCK_CELLS)
                    offset = (area.x_from - whole.x_from, area.y_from - whole.y_from)
                    grid[_slices(area, *offset)] = labels[_slices(area, *corner)]
        return grids


def _empty_grid(rectangle: CellRectangle) -> Grid:
    height = rectangle.y_to - rectangle.y_from + 1
    return np.full((height, rectangle.cell_count // height), _MISSING, dtype=np.uint8)


def _block_grid(codes: NDArray[np.int16]) -> Grid:
    """From codes as `read_block_labels` returns them."""
    best = np.full(BLOCK_CELLS * BLOCK_CELLS, _MISSING, dtype=np.uint8)
    np.minimum.at(best, codes >> 3, (codes & 7).astype(np.uint8))
    return best.reshape(BLOCK_CELLS, BLOCK_CELLS)


def _slices(area: CellRectangle, x: int, y: int) -> tuple[slice, slice]:
    """Rows and columns of an area of that size that begins at x and y."""
    return slice(y, y + area.y_to - area.y_from + 1), slice(x, x + area.x_to - area.x_from + 1)


def _missing_runs(rectangle: CellRectangle, grid: Grid) -> Iterator[CellRectangle]:
    """The missing cells as rectangles of one row."""
    missing = np.zeros((grid.shape[0], grid.shape[1] + 2), dtype=np.int8)
    missing[:, 1:-1] = grid == _MISSING
    edges = np.diff(missing, axis=1)
    starts, ends = np.argwhere(edges == 1), np.argwhere(edges == -1)
    x, y = rectangle.x_from, rectangle.y_from
    for (row, start), (_, end) in zip(starts.tolist(), ends.tolist(), strict=True):
        yield CellRectangle(x + start, x + end - 1, y + row, y + row)


def _merge_rows(runs: Iterable[CellRectangle]) -> list[CellRectangle]:
    """Joins equal runs of neighbouring rows."""
    merged: list[CellRectangle] = []
    open_runs: dict[tuple[int, int], int] = {}
    for run in runs:
        columns = (run.x_from, run.x_to)
        index = open_runs.get(columns)
        if index is not None and merged[index].y_to + 1 == run.y_from:
            merged[index] = merged[index]._replace(y_to=run.y_to)
        else:
            open_runs[columns] = len(merged)
            merged.append(run)
    return merged
