"""Coverage of a region: cells by label, and the missing cells."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tilecache.mercator import CellRectangle, count_cells
from tilecache_daemon.models import FreshnessLabel, Limits
from tilecache_daemon.service.regions import bound_cells, split_cells
from tilecache_daemon.store.store import Store

_RANKS = {label.value: rank for rank, label in enumerate(FreshnessLabel)}


@dataclass(slots=True)
class Coverage:
    """The coverage of a region. A cell has the label of its best tile."""

    cell_count: int
    labels: Counter[str] = field(default_factory=Counter)
    missing: list[CellRectangle] = field(default_factory=list)

    @property
    def covered_count(self) -> int:
        return self.labels.total()


class CoverageService:
    """Computes coverage."""

    def __init__(self, store: Store, limits: Limits) -> None:
        self._store = store
        self._limits = limits

    async def describe(self, zoom: int, cells: Iterable[CellRectangle]) -> Coverage:
        """Raises LimitExceededError if the region has too many cells."""
        bounded = bound_cells(cells, self._limits.max_region_cells)
        coverage = Coverage(count_cells(bounded))
        for piece in split_cells(bounded):
            async with self._store.connection() as queries:
                rows = await queries.tiles.read_cell_labels(zoom, piece)
            best: dict[tuple[int, int], str] = {}
            for y, x, label in rows:
                known = best.setdefault((y, x), label)
                if _RANKS[label] < _RANKS[known]:
                    best[y, x] = label
            coverage.labels.update(best.values())
            coverage.missing += _missing(piece, sorted(best))
        coverage.missing = _merge_rows(coverage.missing)
        return coverage


def _missing(
    piece: Sequence[CellRectangle], covered: Sequence[tuple[int, int]]
) -> list[CellRectangle]:
    """The uncovered cells of a piece, as rectangles of one row each."""
    rows: dict[int, list[int]] = {}
    for y, x in covered:
        rows.setdefault(y, []).append(x)
    missing = []
    for x_from, x_to, y_from, y_to in piece:
        for y in range(y_from, y_to + 1):
            start = x_from
            for x in rows.get(y, ()):
                if not x_from <= x <= x_to:
                    continue
                if start < x:
                    missing.append(CellRectangle(start, x - 1, y, y))
                start = x + 1
            if start <= x_to:
                missing.append(CellRectangle(start, x_to, y, y))
    return missing


def _merge_rows(runs: Iterable[CellRectangle]) -> list[CellRectangle]:
    """Merges rectangles of the same columns in adjacent rows."""
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
