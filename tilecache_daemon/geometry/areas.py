"""The cells of areas, row by row.

An area says in which intervals of longitude it overlaps a band of latitudes. The cells of a row
are those that the intervals of its band overlap. So the cost follows the rows and the edges of
an area, not the box around it.
"""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tilecache.mercator import MAX_LATITUDE, BoundingBox, CellRectangle, row_position

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

ROUNDING_CELLS: Final = 1e-6
"""An overlap of less than this is none, as in `tilecache.mercator`."""
_ROWS_AT_ONCE: Final = 512
_PAIRS_AT_ONCE: Final = 1 << 15


class Intervals(NamedTuple):
    """Intervals of longitude in bands, by the band's index. West may be less than -180 and east
    more than 180. They may overlap, and have no order."""

    band: Integers
    west: Floats
    east: Floats


class Area(Protocol):
    """An area on the ground."""

    @property
    def latitudes(self) -> tuple[float, float]:
        """Its southernmost and its northernmost latitude in degrees."""

    def intervals(self, upper: Floats, lower: Floats) -> Intervals:
        """The longitudes that it overlaps in bands, each from a lower to an upper latitude, the
        northernmost band first."""


class Box(NamedTuple):
    """A box as an area."""

    box: BoundingBox

    @property
    def latitudes(self) -> tuple[float, float]:
        return self.box.south, self.box.north

    def intervals(self, upper: Floats, lower: Floats) -> Intervals:
        """As `Area`."""
        bands = np.flatnonzero((upper >= self.box.south) & (lower <= self.box.north))
        crossing = 360.0 if self.box.west > self.box.east else 0.0
        return Intervals(
            bands,
            np.full(bands.size, self.box.west),
            np.full(bands.size, self.box.east + crossing),
        )


def cells_in_areas(
    zoom: int, areas: Sequence[Area], rounding_cells: float = ROUNDING_CELLS
) -> Iterator[CellRectangle]:
    """The cells that any of some areas overlaps, from the north, as disjoint runs of a row.

    With a negative `rounding_cells` also those that an area comes so near to.
    """
    spans = [(span, area) for area in areas if (span := row_span(zoom, area))]
    if not spans:
        return
    last = max(y_to for (_, y_to), _ in spans)
    y = min(y_from for (y_from, _), _ in spans)
    while y <= last:
        end = min(y + _ROWS_AT_ONCE - 1, last)
        here = [(span, area) for span, area in spans if span[0] <= end and span[1] >= y]
        if not here:
            y = min(y_from for (y_from, _), _ in spans if y_from > end)
            continue
        yield from _cells_of_rows(zoom, here, y, end, rounding_cells)
        y = end + 1


def cells_in_row(zoom: int, areas: Sequence[Area], y: int) -> list[CellRectangle]:
    """The cells of one row that any of some areas overlaps."""
    spans = [(span, area) for area in areas if (span := row_span(zoom, area))]
    here = [(span, area) for span, area in spans if span[0] <= y <= span[1]]
    return list(_cells_of_rows(zoom, here, y, y, ROUNDING_CELLS))


def row_span(zoom: int, area: Area) -> tuple[int, int] | None:
    """The first and the last row that an area overlaps; None beyond the projection's edge."""
    south, north = area.latitudes
    if south > MAX_LATITUDE or north < -MAX_LATITUDE:
        return None
    last = (1 << zoom) - 1
    first = np.floor(row_position(zoom, north) + ROUNDING_CELLS)
    y_from = int(min(max(first, 0), last))
    y_to = int(np.ceil(row_position(zoom, south) - ROUNDING_CELLS)) - 1
    return y_from, min(max(y_to, y_from), last)


def _cells_of_rows(
    zoom: int,
    areas: Sequence[tuple[tuple[int, int], Area]],
    y_from: int,
    y_to: int,
    rounding_cells: float,
) -> Iterator[CellRectangle]:
    rows, first, last = [], [], []
    for span, area in areas:
        start, end = max(span[0], y_from), min(span[1], y_to)
        found = area.intervals(*_bands(zoom, start, end, span, rounding_cells))
        rows.append(found.band + start)
        west, east = (_column_positions(zoom, degrees) for degrees in (found.west, found.east))
        first.append(np.floor(west + rounding_cells).astype(np.int64))
        last.append(np.ceil(east - rounding_cells).astype(np.int64) - 1)
    if rows:
        yield from _merge(zoom, *(np.concatenate(part) for part in (rows, first, last)))


def _bands(
    zoom: int, start: int, end: int, span: tuple[int, int], rounding_cells: float
) -> tuple[Floats, Floats]:
    """The upper and lower latitudes of rows, less the overlap that counts as none. The area's
    first and last row have no row beside them that would have the rest of it."""
    rows = np.arange(start, end + 1, dtype=np.float64)
    upper, lower = rows + rounding_cells, rows + 1 - rounding_cells
    if start == span[0]:
        upper[0] = start - abs(rounding_cells)
    if end == span[1]:
        lower[-1] = end + 1 + abs(rounding_cells)
    return _latitudes(zoom, upper), _latitudes(zoom, lower)


def _latitudes(zoom: int, positions: Floats) -> Floats:
    side = 1 << zoom
    plane = np.pi * (1 - 2 * np.clip(positions, 0, side) / side)
    latitudes: Floats = np.degrees(np.arctan(np.sinh(plane)))
    return latitudes


def _column_positions(zoom: int, longitudes: Floats) -> Floats:
    positions: Floats = (longitudes + 180.0) / 360.0 * (1 << zoom)
    return positions


def _merge(zoom: int, rows: Integers, first: Integers, last: Integers) -> Iterator[CellRectangle]:
    """Disjoint runs of columns, from runs that may overlap and go around the world."""
    side = 1 << zoom
    last = np.minimum(np.maximum(last, first), first + side - 1)
    turns = first // side * side
    first, last = first - turns, last - turns
    beyond = last >= side
    rows = np.concatenate([rows, rows[beyond]])
    first = np.concatenate([first, np.zeros(np.count_nonzero(beyond), dtype=np.int64)])
    last = np.concatenate([np.minimum(last, side - 1), last[beyond] - side])
    # In one line of numbers, in which a row is so far from the next that they never touch.
    start = rows * (2 * side) + first
    order = np.argsort(start)
    start, end = start[order], np.maximum.accumulate((rows * (2 * side) + last)[order])
    begins = np.ones(start.size, dtype=np.bool_)
    begins[1:] = start[1:] > end[:-1] + 1
    ends = np.append(np.flatnonzero(begins)[1:] - 1, start.size - 1)
    if not start.size:
        return
    merged_rows, columns = np.divmod(start[begins], 2 * side)
    widths = end[ends] - start[begins]
    for y, x, width in zip(merged_rows.tolist(), columns.tolist(), widths.tolist(), strict=True):
        yield CellRectangle(x, x + width, y, y)


def pair_with_bands(
    south: Floats, north: Floats, upper: Floats, lower: Floats
) -> Iterator[tuple[Integers, Integers]]:
    """Each item from a southern to a northern latitude with each band that it touches: the
    indexes of items and of bands, some at a time."""
    first = np.searchsorted(-lower, -north, side="left")
    counts = np.maximum(np.searchsorted(-upper, -south, side="right") - first, 0)
    sums = np.concatenate([[0], np.cumsum(counts)])
    start = 0
    while start < counts.size:
        end = int(np.searchsorted(sums, sums[start] + _PAIRS_AT_ONCE, side="right")) - 1
        end = max(end, start + 1)
        items = np.repeat(np.arange(start, end), counts[start:end])
        offsets = np.arange(items.size) - np.repeat(
            sums[start:end] - sums[start], counts[start:end]
        )
        if items.size:
            yield items, first[items] + offsets
        start = end


def join(parts: Sequence[Intervals]) -> Intervals:
    """The intervals of several parts."""
    if not parts:
        nothing = np.zeros(0)
        return Intervals(nothing.astype(np.int64), nothing, nothing)
    band, west, east = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Intervals(band, west, east)
