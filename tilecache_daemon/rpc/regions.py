"""Validation of regions, and their cells.

Each function raises InvalidRequestError with the invalid field that it finds.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Final

from tilecache.errors import FieldViolation
from tilecache.mercator import (
    BLOCK_BITS,
    BoundingBox,
    CellRectangle,
    cell_bounds,
    cells_in_box,
    cells_in_circle,
)
from tilecache.v1 import tile_metadata_store_pb2 as pb
from tilecache_daemon.errors import LimitExceededError
from tilecache_daemon.geometry.areas import Area, Box, cells_in_areas, cells_in_row
from tilecache_daemon.geometry.corridor import AntipodalLegError, Corridor
from tilecache_daemon.geometry.polygon import InvalidPolygonError, Polygon
from tilecache_daemon.models import DEFAULT_LIMITS
from tilecache_daemon.rpc.requests import invalid
from tilecache_daemon.service.regions import ShapedCells

FIELD: Final = "region"
_ONE_OF: Final = "is required: set bounding_box, circle, cell_range, polygon, corridor or union"


def region_cells(zoom: int, region: pb.Region) -> Iterable[CellRectangle]:
    """The cells of a region, generated lazily."""
    match region.WhichOneof("area"):
        case "bounding_box":
            return cells_in_box(zoom, bounding_box(f"{FIELD}.bounding_box", region.bounding_box))
        case "circle":
            circle = _checked_circle(f"{FIELD}.circle", region.circle)
            return cells_in_circle(zoom, circle.latitude, circle.longitude, circle.radius_meters)
        case "cell_range":
            return [_cell_range(f"{FIELD}.cell_range", zoom, region.cell_range)]
    return ShapedCells(cells_in_areas(zoom, areas(zoom, region)))


def region_cells_at(
    zooms: Sequence[int], region: pb.Region
) -> list[tuple[int, Iterable[CellRectangle]]]:
    """The cells of a region at each of some zooms."""
    check_zooms(zooms, region)
    return [(zoom, region_cells(zoom, region)) for zoom in zooms]


def cell_filter(zooms: Sequence[int], region: pb.Region) -> Callable[[int, int, int], bool]:
    """Whether a cell (zoom, x, y) lies in a region at one of some zooms. The region may have any
    size."""
    check_zooms(zooms, region)
    members = areas(zooms[0], region)
    wanted = frozenset(zooms)

    @lru_cache(maxsize=4_096)
    def row(zoom: int, y: int) -> list[CellRectangle]:
        return cells_in_row(zoom, members, y)

    def contains(zoom: int, x: int, y: int) -> bool:
        if zoom not in wanted or not 0 <= y < 1 << zoom:
            return False
        return any(cells.x_from <= x <= cells.x_to for cells in row(zoom, y))

    return contains


def block_filter(zoom: int, region: pb.Region) -> Callable[[int, int], bool]:
    """Whether a region overlaps a block of a zoom (its column and row). It may have any size."""
    members = areas(zoom, region)
    # A block is the cell of so many zooms before; the whole world is one below that.
    block_zoom = max(zoom - BLOCK_BITS, 0)

    @lru_cache(maxsize=4_096)
    def row(y: int) -> list[CellRectangle]:
        return cells_in_row(block_zoom, members, y)

    def contains(x: int, y: int) -> bool:
        if not 0 <= y < 1 << block_zoom:
            return False
        return any(blocks.x_from <= x <= blocks.x_to for blocks in row(y))

    return contains


def check_zooms(zooms: Sequence[int], region: pb.Region) -> None:
    """Refuses several zooms for a region that is one of a certain zoom."""
    if len(zooms) != 1 and any(
        member.WhichOneof("area") == "cell_range" for member in _members(region)
    ):
        raise invalid("zooms", "must be exactly one if the region has a cell_range")


def areas(zoom: int, region: pb.Region) -> list[Area]:
    """The areas that make up a region; cell ranges are those of the zoom."""
    count = sum(map(_count_points, _members(region)))
    if count > DEFAULT_LIMITS.max_region_points:
        raise LimitExceededError(
            FieldViolation(
                FIELD, f"has {count} points, must have at most {DEFAULT_LIMITS.max_region_points}"
            )
        )
    if region.WhichOneof("area") != "union":
        return [_area(FIELD, zoom, region)]
    if not region.union.regions:
        raise invalid(f"{FIELD}.union.regions", "must not be empty")
    return [
        _area(f"{FIELD}.union.regions[{index}]", zoom, member)
        for index, member in enumerate(region.union.regions)
    ]


def _members(region: pb.Region) -> Sequence[pb.Region]:
    return region.union.regions if region.WhichOneof("area") == "union" else [region]


def _count_points(region: pb.Region) -> int:
    return len(region.corridor.waypoints) + count_points(region.polygon)


def count_points(polygon: pb.Polygon) -> int:
    """The positions in a polygon's rings."""
    return sum(len(ring.points) for ring in (polygon.outer, *polygon.holes))


def _area(field: str, zoom: int, region: pb.Region) -> Area:
    match region.WhichOneof("area"):
        case "bounding_box":
            return Box(bounding_box(f"{field}.bounding_box", region.bounding_box))
        case "circle":
            circle = _checked_circle(f"{field}.circle", region.circle)
            return Corridor([(circle.latitude, circle.longitude)], circle.radius_meters)
        case "cell_range":
            cells = _cell_range(f"{field}.cell_range", zoom, region.cell_range)
            first = cell_bounds(zoom, cells.x_from, cells.y_from)
            last = cell_bounds(zoom, cells.x_to, cells.y_to)
            return Box(BoundingBox(last.south, first.west, first.north, last.east))
        case "polygon":
            return polygon(f"{field}.polygon", region.polygon)
        case "corridor":
            return _corridor(f"{field}.corridor", region.corridor)
        case "union":
            raise invalid(f"{field}.union", "must not be within another union")
    raise invalid(field, _ONE_OF)


def bounding_box(field: str, message: pb.BoundingBox) -> BoundingBox:
    """A box whose degrees are in range, and whose south is not north of its north."""
    box = BoundingBox(message.south, message.west, message.north, message.east)
    for name, value in box._asdict().items():
        _check_degrees(f"{field}.{name}", value, 90.0 if name in ("south", "north") else 180.0)
    if box.south > box.north:
        raise invalid(
            f"{field}.south",
            f"south ({box.south}) must be less than or equal to north ({box.north})",
        )
    return box


def polygon(field: str, message: pb.Polygon) -> Polygon:
    """A polygon whose rings are simple and whose holes lie within it."""
    outer = list(_positions(f"{field}.outer.points", message.outer.points))
    holes = [
        list(_positions(f"{field}.holes[{index}].points", hole.points))
        for index, hole in enumerate(message.holes)
    ]
    try:
        return Polygon(outer, holes)
    except InvalidPolygonError as error:
        ring = f"holes[{error.ring - 1}]" if error.ring else "outer"
        raise invalid(f"{field}.{ring}", str(error)) from error


def _corridor(field: str, message: pb.Corridor) -> Corridor:
    most = DEFAULT_LIMITS.max_half_width_meters
    if not 0 < message.half_width_meters <= most:
        raise invalid(
            f"{field}.half_width_meters",
            f"is {message.half_width_meters}, must be more than 0 and at most {most}",
        )
    waypoints = list(_positions(f"{field}.waypoints", message.waypoints))
    if not waypoints:
        raise invalid(f"{field}.waypoints", "must not be empty")
    try:
        return Corridor(waypoints, message.half_width_meters)
    except AntipodalLegError as error:
        raise invalid(f"{field}.waypoints[{error.waypoint}]", str(error)) from error


def _positions(field: str, points: Iterable[pb.LatLng]) -> Iterator[tuple[float, float]]:
    for index, point in enumerate(points):
        _check_degrees(f"{field}[{index}].latitude", point.latitude, 90.0)
        _check_degrees(f"{field}[{index}].longitude", point.longitude, 180.0)
        yield point.latitude, point.longitude


def _checked_circle(field: str, circle: pb.Circle) -> pb.Circle:
    _check_degrees(f"{field}.latitude", circle.latitude, 90.0)
    _check_degrees(f"{field}.longitude", circle.longitude, 180.0)
    most = DEFAULT_LIMITS.max_radius_meters
    if not 0 < circle.radius_meters <= most:
        raise invalid(
            f"{field}.radius_meters",
            f"is {circle.radius_meters}, must be more than 0 and at most {most}",
        )
    return circle


def _cell_range(field: str, zoom: int, message: pb.CellRange) -> CellRectangle:
    last = (1 << zoom) - 1
    cells = CellRectangle(message.x_from, message.x_to, message.y_from, message.y_to)
    for name, value in cells._asdict().items():
        if not 0 <= value <= last:
            raise invalid(f"{field}.{name}", f"is {value}, must be within 0..{last} at zoom {zoom}")
    for axis in ("x", "y"):
        start, end = getattr(cells, f"{axis}_from"), getattr(cells, f"{axis}_to")
        if start > end:
            raise invalid(
                f"{field}.{axis}_from",
                f"{axis}_from ({start}) must be less than or equal to {axis}_to ({end})",
            )
    return cells


def _check_degrees(field: str, value: float, most: float) -> None:
    # Not `<` and `>`, which are false for a NaN.
    if not -most <= value <= most:
        raise invalid(field, f"is {value}, must be within -{most:g}..{most:g} degrees")
