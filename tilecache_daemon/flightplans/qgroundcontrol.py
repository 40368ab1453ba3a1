"""Plans of QGroundControl (`.plan`), and missions in the text format `QGC WPL 110`.

The route is home, then the navigation commands with a position in their order, then home where
the mission returns there. The area is what is surveyed and what inclusion fences hold, less what
exclusion fences hold.

Sources: QGroundControl's description of its plan files, and MAVLink's of commands and frames.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import shapely

from tilecache.mercator import EARTH_RADIUS_METERS
from tilecache_daemon.flightplans.shapes import (
    AreaShape,
    CircleShape,
    CorridorShape,
    FlightPlanError,
    Line,
    PolygonShape,
    Position,
    Shapes,
    position,
    without_repetitions,
    wrapped,
)

_RETURN_TO_LAUNCH: Final = 20
# Waypoint, the loiters, land, take off, spline, VTOL take off and land, place payload.
_WITH_POSITION: Final = frozenset({16, 17, 18, 19, 21, 22, 31, 82, 84, 85, 94})
_GLOBAL_FRAMES: Final = frozenset({0, 3, 5, 6, 10, 11})
_NOWHERE: Final = (0.0, 0.0)
_CIRCLE_POINTS: Final = 180
_WPL_COLUMNS: Final = 12

Command = tuple[int, int, Position | None]
"""The number of a command, its frame, and its position if it has one."""


def read_plan(plan: Mapping[str, Any]) -> Shapes:
    """The mission, surveys and fences of a plan. Raises FlightPlanError."""
    mission, fence = _part(plan, "mission"), _part(plan, "geoFence")
    home = _home(mission.get("plannedHomePosition"))
    items = _list("mission.items", mission.get("items"))
    commands = [
        command
        for index, item in enumerate(items)
        for command in _commands(f"mission.items[{index}]", item)
    ]
    surveyed = [
        area
        for index, item in enumerate(items)
        for area in _surveyed(f"mission.items[{index}]", item)
    ]
    included, excluded = _fences(fence)
    route = _route(home, commands)
    return Shapes(lines=[route] if route else [], areas=_without(surveyed + included, excluded))


def read_waypoints(text: str) -> Shapes:
    """The mission of a `QGC WPL 110` text, whose first item is home. Raises FlightPlanError."""
    header, *lines = text.splitlines()
    if header.split()[:3] != ["QGC", "WPL", "110"]:
        raise FlightPlanError(f"{header!r} is not QGC WPL 110, the version that can be read")
    home: Position | None = None
    commands: list[Command] = []
    for number, line in enumerate(lines, start=2):
        columns = line.split()
        if not columns:
            continue
        where = f"line {number}"
        if len(columns) != _WPL_COLUMNS:
            raise FlightPlanError(f"{where}: has {len(columns)} columns, not {_WPL_COLUMNS}")
        frame, command = (_integer(where, text) for text in columns[2:4])
        found = _somewhere(where, *columns[8:10])
        if columns[0] == "0":
            home = found
        else:
            commands.append((command, frame, found))
    route = _route(home, commands)
    return Shapes(lines=[route] if route else [])


def _route(home: Position | None, commands: Iterable[Command]) -> Line:
    """Empty if no command has a position."""
    route: Line = []
    for command, frame, found in commands:
        if command == _RETURN_TO_LAUNCH and home:
            route.append(home)
        if command in _WITH_POSITION and frame in _GLOBAL_FRAMES and found:
            route.append(found)
    if set(route) <= {home}:
        return []
    return without_repetitions([home, *route] if home else route)


def _commands(where: str, item: Any) -> Iterator[Command]:
    """The commands of an item: its own, or those that QGroundControl made of a pattern."""
    if not isinstance(item, dict):
        raise FlightPlanError(f"{where} is not an object")
    if item.get("type") == "SimpleItem":
        params = item.get("params")
        if not isinstance(params, list) or len(params) < 6:
            raise FlightPlanError(f"{where}.params does not have seven numbers")
        command, frame = (_integer(where, item.get(name)) for name in ("command", "frame"))
        yield command, frame, _somewhere(where, *params[4:6])
        return
    transects = item.get("TransectStyleComplexItem")
    if isinstance(transects, dict):
        for index, inner in enumerate(_entries(f"{where}.Items", transects.get("Items"))):
            yield from _commands(f"{where}.Items[{index}]", inner)
        return
    for name in ("landingApproachCoordinate", "loiterCoordinate", "landCoordinate"):
        if isinstance(item.get(name), list):
            yield 16, 0, _somewhere(f"{where}.{name}", *item[name][:2])
    if item.get("complexItemType") == "StructureScan":
        for each in _ring(f"{where}.polygon", item.get("polygon")):
            yield 16, 0, each


def _surveyed(where: str, item: Mapping[str, Any]) -> Iterator[AreaShape]:
    match item.get("complexItemType"):
        case "survey" | "StructureScan":
            yield PolygonShape(_ring(f"{where}.polygon", item.get("polygon")))
        case "CorridorScan":
            line = [
                position(f"{where}.polyline[{index}]", *_pair(point))
                for index, point in enumerate(_list(f"{where}.polyline", item.get("polyline")))
            ]
            width = _positive(f"{where}.CorridorWidth", item.get("CorridorWidth"))
            if line:
                yield CorridorShape(line, width / 2)


def _fences(fence: Mapping[str, Any]) -> tuple[list[AreaShape], list[AreaShape]]:
    """The inclusion and the exclusion fences."""
    included: list[AreaShape] = []
    excluded: list[AreaShape] = []
    for index, entry in enumerate(_entries("geoFence.polygons", fence.get("polygons"))):
        where = f"geoFence.polygons[{index}]"
        ring = _ring(f"{where}.polygon", entry.get("polygon"))
        (included if entry.get("inclusion") else excluded).append(PolygonShape(ring))
    for index, entry in enumerate(_entries("geoFence.circles", fence.get("circles"))):
        where = f"geoFence.circles[{index}].circle"
        circle = _part(entry, "circle")
        centre = position(f"{where}.center", *_pair(circle.get("center")))
        radius = _positive(f"{where}.radius", circle.get("radius"))
        (included if entry.get("inclusion") else excluded).append(CircleShape(centre, radius))
    return included, excluded


def _without(included: Sequence[AreaShape], excluded: Sequence[AreaShape]) -> list[AreaShape]:
    """What is included and not excluded. Circles and corridors become polygons where something
    is excluded: around what is included, within an excluded circle."""
    if not excluded:
        return list(included)
    rest: list[AreaShape] = []
    for area in included:
        reference = _first_position(area)[1]
        left = _planar(area, reference, around=True)
        for hole in excluded:
            left = shapely.difference(left, _planar(hole, reference, around=False))
        rest += map(_polygon, _polygons(left))
    return rest


def _first_position(area: AreaShape) -> Position:
    match area:
        case CircleShape():
            return area.centre
        case CorridorShape():
            return area.line[0]
        case PolygonShape():
            return area.outer[0]


def _planar(area: AreaShape, reference: float, *, around: bool) -> Any:
    """An area in longitude and latitude, on the same side of the antimeridian as a longitude.
    The legs of a corridor are straight there: a metre beside the shortest way after 5 km."""
    if isinstance(area, CorridorShape):
        ends = [
            _planar(CircleShape(each, area.half_width_meters), reference, around=around)
            for each in area.line
        ]
        legs = zip(ends, ends[1:] or ends, strict=False)
        return shapely.union_all([shapely.union(*leg).convex_hull for leg in legs])
    ring = _circle_ring(area, around=around) if isinstance(area, CircleShape) else area.outer
    longitudes = np.unwrap([longitude for _, longitude in ring], period=360.0)
    longitudes -= 360.0 * np.round((longitudes.mean() - reference) / 360.0)
    plane = zip(longitudes, [latitude for latitude, _ in ring], strict=True)
    return shapely.make_valid(shapely.Polygon(list(plane)))


def _circle_ring(circle: CircleShape, *, around: bool) -> Line:
    """A polygon around a circle, or within it."""
    scale = 1 / math.cos(math.pi / _CIRCLE_POINTS) if around else 1.0
    reach = circle.radius_meters * scale / EARTH_RADIUS_METERS
    phi, theta = map(math.radians, circle.centre)
    ring = []
    for bearing in (2 * math.pi * index / _CIRCLE_POINTS for index in range(_CIRCLE_POINTS)):
        latitude = math.asin(
            math.sin(phi) * math.cos(reach) + math.cos(phi) * math.sin(reach) * math.cos(bearing)
        )
        turn = math.atan2(
            math.sin(bearing) * math.sin(reach) * math.cos(phi),
            math.cos(reach) - math.sin(phi) * math.sin(latitude),
        )
        ring.append((math.degrees(latitude), math.degrees(theta + turn)))
    return ring


def _polygons(geometry: Any) -> Iterator[Any]:
    """The polygons of a geometry; lines and points that an intersection leaves are none."""
    for part in shapely.get_parts(geometry):
        if part.geom_type == "Polygon" and not part.is_empty:
            yield part
        elif part.geom_type.startswith(("Multi", "GeometryCollection")):
            yield from _polygons(part)


def _polygon(planar: Any) -> PolygonShape:
    outer, *holes = (
        [wrapped((latitude, longitude)) for longitude, latitude in ring.coords[:-1]]
        for ring in (planar.exterior, *planar.interiors)
    )
    return PolygonShape(outer, holes)


def _home(value: Any) -> Position | None:
    if not isinstance(value, list) or len(value) < 2:
        return None
    return _somewhere("mission.plannedHomePosition", *value[:2])


def _somewhere(where: str, latitude: Any, longitude: Any) -> Position | None:
    """A position; None for 0,0 and for none, which say that a command has none."""
    if latitude is None or longitude is None:
        return None
    found = position(where, latitude, longitude)
    return None if found == _NOWHERE else found


def _ring(where: str, points: Any) -> Line:
    ring = [
        wrapped(position(f"{where}[{index}]", *_pair(point)))
        for index, point in enumerate(_list(where, points))
    ]
    if len(set(ring)) < 3:
        raise FlightPlanError(f"{where} has fewer than three different points")
    return ring


def _entries(where: str, value: Any) -> list[dict[str, Any]]:
    """The objects of a list, which may be absent."""
    entries = [] if value is None else _list(where, value)
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise FlightPlanError(f"{where}[{index}] is not an object")
    return entries


def _list(where: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise FlightPlanError(f"{where} is missing" if value is None else f"{where} is not a list")
    return value


def _pair(point: Any) -> Sequence[Any]:
    return point[:2] if isinstance(point, list) and len(point) >= 2 else (None, None)


def _part(parent: Any, name: str) -> Mapping[str, Any]:
    part = parent.get(name) if isinstance(parent, dict) else None
    return part if isinstance(part, dict) else {}


def _integer(where: str, value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise FlightPlanError(f"{where}: {value!r} is not a whole number") from None


def _positive(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise FlightPlanError(f"{where}: {value!r} is not a number more than 0")
    return float(value)
