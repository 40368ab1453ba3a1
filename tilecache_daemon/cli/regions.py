"""The region and zoom options, shared by several commands."""

import functools
import importlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import click

from tilecache.identity import MAX_ZOOM
from tilecache.v1.tile_metadata_store_pb2 import (
    BoundingBox,
    CellRange,
    Circle,
    Corridor,
    LatLng,
    Polygon,
    Region,
    RegionUnion,
    Ring,
)
from tilecache_daemon.cli.boxes import check_box
from tilecache_daemon.cli.output import Command
from tilecache_daemon.flightplans.shapes import (
    AreaShape,
    CircleShape,
    CorridorShape,
    Line,
    PolygonShape,
)

Number = TypeVar("Number", int, float)
Numbers = Sequence[Number] | None

_POSITION: Final = re.compile(r"[^\s,]+,[^\s,]+")
_ZOOMS: Final = re.compile(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?")
_CHOICES: Final = "--bbox, --circle, --cells, --route and --area"


class _Areas(NamedTuple):
    """The values of the options."""

    bbox: Numbers[float]
    circle: Numbers[float]
    cells: Numbers[int]
    route: list[Line] | None
    area: list[AreaShape] | None


def _numbers_option(
    name: str,
    parts: str,
    kind: Callable[[str], Number],
    text: str,
    *,
    required: bool = False,
    check: Callable[[Sequence[Number]], None] = lambda _: None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """An option whose value is numbers separated by commas."""

    def parse(_: click.Context, __: click.Parameter, value: str | None) -> Numbers[Number]:
        if value is None:
            return None
        numbers = _numbers(value, parts, kind)
        check(numbers)
        return numbers

    return click.option(name, metavar=parts, callback=parse, required=required, help=text)


def _numbers(value: str, parts: str, kind: Callable[[str], Number]) -> list[Number]:
    texts = value.split(",")
    if len(texts) != len(parts.split(",")):
        raise click.BadParameter(f"{value!r} is not {parts}")
    try:
        return [kind(text) for text in texts]
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not {parts}: {error}") from error


def box_option(*, required: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Adds --bbox; the command gets its four numbers as `bbox`."""
    return _numbers_option(
        "--bbox",
        "SOUTH,WEST,NORTH,EAST",
        float,
        "Bounding box in degrees. WEST is greater than EAST across the antimeridian.",
        required=required,
        check=check_box,
    )


def area_option(command: Command) -> Command:
    """Adds --area; the command gets its shapes as `area`."""
    return click.option(
        "--area",
        metavar="FILE",
        callback=_parse_area,
        help="Area of a file: a QGroundControl plan (surveys and fences), GeoJSON or KML.",
    )(command)


def single_polygon(area: Sequence[AreaShape]) -> Polygon:
    """The polygon of an area that is one; else the command ends."""
    if len(area) != 1:
        raise click.UsageError(f"--area: has {len(area)} shapes, must be one polygon.")
    if not isinstance(area[0], PolygonShape):
        raise click.UsageError("--area: must be a polygon.")
    return _shape_region(area[0]).polygon


def zooms_option(*, required: bool) -> Callable[[Command], Command]:
    """Adds --zoom, which takes several zooms and ranges; the command gets them as `zooms`, in
    ascending order."""
    return click.option(
        "--zoom",
        "zooms",
        metavar="ZOOM[-ZOOM]",
        multiple=True,
        required=required,
        callback=_parse_zooms,
        help="Zoom levels: 13, 13-15 or 13,15. May be repeated.",
    )


def _parse_zooms(_: click.Context, __: click.Parameter, values: Sequence[str]) -> tuple[int, ...]:
    zooms: set[int] = set()
    for text in ",".join(values).split(",") if values else ():
        match = _ZOOMS.fullmatch(text)
        if not match:
            raise click.BadParameter(f"{text!r} is not a zoom or a range of zooms such as 13-15")
        first = int(match[1])
        last = int(match[2] or first)
        if first > last:
            raise click.BadParameter(f"{text!r}: the first zoom of a range is its lowest")
        if last > MAX_ZOOM:
            raise click.BadParameter(f"{text!r} is not within 0-{MAX_ZOOM}")
        zooms.update(range(first, last + 1))
    return tuple(sorted(zooms))


def region_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the region options, exactly one of which is required; the command gets it as
    `region`."""
    return _region_options(command, required=True)


def optional_region_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """As `region_options`, but all may be omitted; then `region` is None."""
    return _region_options(command, required=False)


def _region_options(command: Callable[..., Any], *, required: bool) -> Callable[..., Any]:
    @box_option(required=False)
    @_numbers_option("--circle", "LAT,LON,METRES", float, "Circle around a point.")
    @_numbers_option(
        "--cells", "X_FROM,X_TO,Y_FROM,Y_TO", int, "Range of cells, both ends included."
    )
    @area_option
    @click.option(
        "--route",
        metavar="FILE|'LAT,LON LAT,LON ...'",
        callback=_parse_route,
        help="Route of a file (QGroundControl plan, QGC WPL 110, GeoJSON, KML or GPX), or its "
        "waypoints as one quoted value. Needs --width.",
    )
    @click.option("--width", type=float, metavar="METRES", help="Width on each side of the route.")
    @functools.wraps(command)
    def with_region(
        *args: Any,
        bbox: Numbers[float],
        circle: Numbers[float],
        cells: Numbers[int],
        route: list[Line] | None,
        area: list[AreaShape] | None,
        width: float | None,
        **options: Any,
    ) -> Any:
        areas = _Areas(bbox, circle, cells, route, area)
        if (route is None) != (width is None):
            raise click.UsageError("--route and --width must be given together.")
        given = sum(area is not None for area in areas)
        if given > 1 or (required and not given):
            raise click.UsageError(f"Give exactly one of {_CHOICES}.")
        return command(*args, region=_region(areas, width) if given else None, **options)

    return with_region


def _parse_route(_: click.Context, __: click.Parameter, value: str | None) -> list[Line] | None:
    if value is None:
        return None
    texts = value.split()
    if not texts or not all(map(_POSITION.fullmatch, texts)):
        if not Path(value).exists():
            raise click.BadParameter(f"{value!r} is neither a file nor 'LAT,LON LAT,LON ...'")
        lines: list[Line] = _read(value, "lines", "has no route", "has areas: use --area")
        return lines
    route = []
    for text in texts:
        latitude, longitude = _numbers(text, "LAT,LON", float)
        route.append((latitude, longitude))
    return [route]


def _parse_area(_: click.Context, __: click.Parameter, value: str | None) -> list[AreaShape] | None:
    if value is None:
        return None
    areas: list[AreaShape] = _read(value, "areas", "has no area", "has a route: use --route")
    return areas


def _read(value: str, wanted: str, fault: str, hint: str) -> Any:
    """The lines or areas of a file."""
    # Loaded when it is needed: it takes time.
    files = importlib.import_module("tilecache_daemon.flightplans.files")
    try:
        shapes = files.read_file(Path(value))
    except OSError as error:
        raise click.BadParameter(f"{value}: {error.strerror}") from error
    except ValueError as error:
        # FlightPlanError, or a path that has a null character.
        raise click.BadParameter(f"{value}: {error}") from error
    found = [shape for shape in getattr(shapes, wanted) if shape]
    if not found:
        if shapes.lines or shapes.areas:
            fault += f"; it {hint}"
        raise click.BadParameter(f"{value}: {fault}")
    return found


def _region(areas: _Areas, width: float | None) -> Region:
    if areas.bbox is not None:
        south, west, north, east = areas.bbox
        return Region(bounding_box=BoundingBox(south=south, west=west, north=north, east=east))
    if areas.circle is not None:
        latitude, longitude, radius = areas.circle
        return Region(circle=Circle(latitude=latitude, longitude=longitude, radius_meters=radius))
    if areas.route is not None and width is not None:
        return _union([_shape_region(CorridorShape(line, width)) for line in areas.route])
    if areas.area is not None:
        return _union(list(map(_shape_region, areas.area)))
    assert areas.cells is not None
    x_from, x_to, y_from, y_to = areas.cells
    try:
        return Region(cell_range=CellRange(x_from=x_from, x_to=x_to, y_from=y_from, y_to=y_to))
    except ValueError as error:
        raise click.UsageError(f"--cells: {error}") from error


def _union(regions: Sequence[Region]) -> Region:
    return regions[0] if len(regions) == 1 else Region(union=RegionUnion(regions=regions))


def _shape_region(shape: AreaShape) -> Region:
    match shape:
        case CorridorShape(line, width):
            return Region(corridor=Corridor(waypoints=_points(line), half_width_meters=width))
        case CircleShape((latitude, longitude), radius):
            circle = Circle(latitude=latitude, longitude=longitude, radius_meters=radius)
            return Region(circle=circle)
        case PolygonShape(outer, holes):
            rings = [Ring(points=_points(ring)) for ring in holes]
            return Region(polygon=Polygon(outer=Ring(points=_points(outer)), holes=rings))


def _points(line: Line) -> list[LatLng]:
    return [LatLng(latitude=latitude, longitude=longitude) for latitude, longitude in line]


def describe_region(region: Region) -> str:
    """A region on one line."""
    match region.WhichOneof("area"):
        case "bounding_box":
            box = region.bounding_box
            return f"box {box.south:g},{box.west:g},{box.north:g},{box.east:g}"
        case "circle":
            circle = region.circle
            centre = f"{circle.latitude:g},{circle.longitude:g}"
            return f"circle {centre}, {circle.radius_meters:g} m"
        case "cell_range":
            cells = region.cell_range
            return f"cells {cells.x_from},{cells.x_to},{cells.y_from},{cells.y_to}"
        case "polygon":
            return f"polygon of {len(region.polygon.outer.points)} points"
        case "corridor":
            corridor = region.corridor
            count = len(corridor.waypoints)
            width = f"{corridor.half_width_meters:g} m on each side"
            return f"route of {count} waypoint{'' if count == 1 else 's'}, {width}"
        case "union":
            return "; ".join(map(describe_region, region.union.regions))
    return "none"
