"""Web Mercator cells (EPSG:3857 in XYZ order), areas of cells, and blocks of cells.

Degrees are on WGS 84, lengths in metres. Formulae: OSGeo's Tile Map Service specification, and
the haversine formula for circles.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Callable, Final, Iterable, Iterator, NamedTuple, Sequence

MAX_LATITUDE: Final = math.degrees(math.atan(math.sinh(math.pi)))
EQUATOR_METERS: Final = 2 * math.pi * 6_378_137.0
EARTH_RADIUS_METERS: Final = 6_371_008.8

BLOCK_BITS: Final = 5
BLOCK_CELLS: Final = 1 << BLOCK_BITS
"""A block has so many columns and rows of cells."""
_MASK: Final = BLOCK_CELLS - 1

# More than the rounding error of degrees at zoom 22, less than a pixel.
_ROUNDING_CELLS: Final = 1e-6
_DEGREES_IN_HALF_RADIANS: Final = math.degrees(2.0)


class CellRectangle(NamedTuple):
    """Cells of one zoom from `x_from` to `x_to` and `y_from` to `y_to`, ends included."""

    x_from: int
    x_to: int
    y_from: int
    y_to: int

    @property
    def cell_count(self) -> int:
        return (self.x_to - self.x_from + 1) * (self.y_to - self.y_from + 1)


class BlockKey(NamedTuple):
    """A block: its zoom, and its cells' columns and rows without their last `BLOCK_BITS` bits."""

    zoom: int
    x: int
    y: int


class _Parallel(NamedTuple):
    """A circle of latitude: in degrees, in radians, and the cosine. Compared by the latitude."""

    latitude: float
    radians: float
    cosine: float


class BoundingBox(NamedTuple):
    """Degrees; `west` is more than `east` when the box crosses the antimeridian."""

    south: float
    west: float
    north: float
    east: float

    def contains(self, latitude: float, longitude: float) -> bool:
        """Whether the point is within, edges included."""
        if not self.south <= latitude <= self.north:
            return False
        if self.west <= self.east:
            return self.west <= longitude <= self.east
        return longitude >= self.west or longitude <= self.east


def count_cells(rectangles: Iterable[CellRectangle]) -> int:
    """The number of cells in disjoint rectangles."""
    return sum(rectangle.cell_count for rectangle in rectangles)


def block_of(zoom: int, x: int, y: int) -> BlockKey:
    """The block that a cell lies in."""
    return BlockKey(zoom, x >> BLOCK_BITS, y >> BLOCK_BITS)


def blocks_in(zoom: int, cells: Iterable[CellRectangle]) -> dict[BlockKey, list[CellRectangle]]:
    """The blocks that rectangles overlap, each with the parts of the rectangles in it."""
    blocks: dict[BlockKey, list[CellRectangle]] = {}
    for x_from, x_to, y_from, y_to in cells:
        for block_y in range(y_from >> BLOCK_BITS, (y_to >> BLOCK_BITS) + 1):
            top, bottom = block_y << BLOCK_BITS, (block_y << BLOCK_BITS) | _MASK
            for block_x in range(x_from >> BLOCK_BITS, (x_to >> BLOCK_BITS) + 1):
                left, right = block_x << BLOCK_BITS, (block_x << BLOCK_BITS) | _MASK
                part = CellRectangle(
                    max(x_from, left), min(x_to, right), max(y_from, top), min(y_to, bottom)
                )
                blocks.setdefault(BlockKey(zoom, block_x, block_y), []).append(part)
    return blocks


def bounds_of(cells: Sequence[CellRectangle]) -> CellRectangle:
    """The smallest rectangle that contains all of some."""
    x_from, x_to, y_from, y_to = zip(*cells)
    return CellRectangle(min(x_from), max(x_to), min(y_from), max(y_to))


def cells_of(key: BlockKey) -> CellRectangle:
    """All cells of a block."""
    x, y = key.x << BLOCK_BITS, key.y << BLOCK_BITS
    return CellRectangle(x, x | _MASK, y, y | _MASK)


def cell_bounds(zoom: int, x: int, y: int) -> BoundingBox:
    """The box of a cell in degrees."""
    return BoundingBox(
        south=_latitude(zoom, y + 1),
        west=_longitude(zoom, x),
        north=_latitude(zoom, y),
        east=_longitude(zoom, x + 1),
    )


def cell_centre(zoom: int, x: int, y: int) -> tuple[float, float]:
    """Latitude and longitude of a cell's centre, in the projection's plane."""
    return _latitude(zoom, y + 0.5), _longitude(zoom, x + 0.5)


def cell_edge_meters(zoom: int, latitude: float) -> float:
    """The length on the ground of a cell's edge at a latitude."""
    return EQUATOR_METERS * math.cos(math.radians(latitude)) / (1 << zoom)


def cell_at(zoom: int, latitude: float, longitude: float) -> tuple[int, int]:
    """The cell (x, y) that contains a point; beyond the projection's edge, the nearest one."""
    x, _ = _span(_column_position(zoom, longitude), 0, zoom)
    y, _ = _span(row_position(zoom, latitude), 0, zoom)
    return x, y


def cells_in_box(zoom: int, box: BoundingBox) -> Iterator[CellRectangle]:
    """The cells that a box overlaps; sharing an edge is not overlapping.

    Gives nothing beyond the projection's edge and two rectangles across the antimeridian.
    """
    if box.south > MAX_LATITUDE or box.north < -MAX_LATITUDE:
        return
    y_from, y_to = _span(row_position(zoom, box.north), row_position(zoom, box.south), zoom)
    west, east = _column_position(zoom, box.west), _column_position(zoom, box.east)
    if box.west <= box.east:
        yield CellRectangle(*_span(west, east, zoom), y_from, y_to)
        return
    side = 1 << zoom
    x_from = math.floor(west + _ROUNDING_CELLS)
    x_to = math.ceil(east - _ROUNDING_CELLS) - 1
    if x_from <= x_to:
        yield CellRectangle(0, side - 1, y_from, y_to)
        return
    # A box from or to the antimeridian itself lies on one side alone.
    if x_from < side:
        yield CellRectangle(x_from, side - 1, y_from, y_to)
    if x_to >= 0 or x_from >= side:
        yield CellRectangle(0, max(x_to, 0), y_from, y_to)


def cells_in_circle(
    zoom: int, latitude: float, longitude: float, radius_meters: float
) -> Iterator[CellRectangle]:
    """The cells that a circle on the ground overlaps, row by row from the north."""
    south, north = _circle_latitudes(latitude, radius_meters)
    if south > MAX_LATITUDE or north < -MAX_LATITUDE:
        return
    y_from, y_to = _span(row_position(zoom, north), row_position(zoom, south), zoom)
    half_width = _circle_half_widths(latitude, radius_meters)
    columns = _columns_around(zoom, longitude)
    widest = _widest_latitude(latitude, radius_meters)
    # Each edge between two rows is computed once.
    upper = min(_row_edge(zoom, y_from), _parallel(north))
    upper_width = half_width(upper)
    for y in range(y_from, y_to + 1):
        lower = (
            _row_edge(zoom, y + 1) if y < y_to else max(_row_edge(zoom, y + 1), _parallel(south))
        )
        lower_width = half_width(lower)
        width = upper_width if upper_width > lower_width else lower_width
        if lower.latitude < widest < upper.latitude:
            width = max(width, half_width(_parallel(widest)))
        for x_from, x_to in columns(width):
            yield CellRectangle(x_from, x_to, y, y)
        upper, upper_width = lower, lower_width


def _circle_latitudes(latitude: float, radius_meters: float) -> tuple[float, float]:
    reach = math.degrees(radius_meters / EARTH_RADIUS_METERS)
    return max(latitude - reach, -90.0), min(latitude + reach, 90.0)


def _widest_latitude(latitude: float, radius_meters: float) -> float:
    """The latitude at which a meridian touches a circle; the pole if the circle contains it."""
    centre, cosine = math.radians(latitude), math.cos(radius_meters / EARTH_RADIUS_METERS)
    ratio = math.sin(centre) / cosine if cosine else math.copysign(1.0, centre)
    return math.degrees(math.asin(min(max(ratio, -1.0), 1.0)))


def _circle_half_widths(latitude: float, radius_meters: float) -> Callable[[_Parallel], float]:
    """The difference of longitude, in degrees, between a circle's centre and its edge at a
    latitude within the circle's, by the haversine formula, which is exact for small circles."""
    centre, reach = math.radians(latitude), math.sin(radius_meters / EARTH_RADIUS_METERS / 2) ** 2
    centre_cosine = math.cos(centre)
    sin, asin, sqrt = math.sin, math.asin, math.sqrt

    def half_width(at: _Parallel) -> float:
        _, radians, cosine = at
        divisor = centre_cosine * cosine
        if divisor < 1e-12:
            return 180.0
        ratio = (reach - sin((radians - centre) / 2) ** 2) / divisor
        if ratio <= 0.0:
            return 0.0
        return _DEGREES_IN_HALF_RADIANS * asin(sqrt(ratio)) if ratio < 1.0 else 180.0

    return half_width


def _columns_around(zoom: int, longitude: float) -> Callable[[float], list[tuple[int, int]]]:
    """First and last column of the cells within a difference of longitude, in degrees: two
    runs across the antimeridian."""
    side = 1 << zoom
    floor, ceil = math.floor, math.ceil
    columns_per_degree = side / 360.0
    centre = _column_position(zoom, longitude)

    def columns(half_width: float) -> list[tuple[int, int]]:
        reach = half_width * columns_per_degree
        first = floor(centre - reach + _ROUNDING_CELLS)
        last = ceil(centre + reach - _ROUNDING_CELLS) - 1
        if 0 <= first <= last < side:
            return [(first, last)]
        return _columns_at_the_edges(zoom, longitude, half_width)

    return columns


def _columns_at_the_edges(zoom: int, longitude: float, half_width: float) -> list[tuple[int, int]]:
    side = 1 << zoom
    if half_width >= 180.0:
        return [(0, side - 1)]
    west, east = longitude - half_width, longitude + half_width
    if west >= -180.0 and east <= 180.0:
        return [_span(_column_position(zoom, west), _column_position(zoom, east), zoom)]
    first, _ = _span(_column_position(zoom, west + 360.0 if west < -180.0 else west), side, zoom)
    _, last = _span(0, _column_position(zoom, east - 360.0 if east > 180.0 else east), zoom)
    return [(0, side - 1)] if first <= last else [(first, side - 1), (0, last)]


@lru_cache(maxsize=4_096)
def _row_edge(zoom: int, y: int) -> _Parallel:
    """The edge above a row."""
    return _parallel(_latitude(zoom, y))


def _parallel(latitude: float) -> _Parallel:
    radians = math.radians(latitude)
    return _Parallel(latitude, radians, math.cos(radians))


@lru_cache(maxsize=4_096)
def _latitude(zoom: int, y: float) -> float:
    return math.degrees(math.atan(math.sinh(math.pi * (1 - 2 * y / (1 << zoom)))))


def _longitude(zoom: int, x: float) -> float:
    return x / (1 << zoom) * 360.0 - 180.0


def _column_position(zoom: int, longitude: float) -> float:
    return (longitude + 180.0) / 360.0 * (1 << zoom)


def row_position(zoom: int, latitude: float) -> float:
    """The position of a latitude, in rows from the north edge."""
    clamped = min(max(latitude, -MAX_LATITUDE), MAX_LATITUDE)
    position = (1 - math.asinh(math.tan(math.radians(clamped))) / math.pi) / 2
    return position * (1 << zoom)


def _span(start: float, end: float, zoom: int) -> tuple[int, int]:
    """The first and the last cell between two positions; at least one."""
    last = (1 << zoom) - 1
    first = min(max(math.floor(start + _ROUNDING_CELLS), 0), last)
    return first, min(max(math.ceil(end - _ROUNDING_CELLS) - 1, first), last)
