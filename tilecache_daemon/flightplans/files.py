"""Reading files of routes and areas: QGroundControl, Mission Planner, GeoJSON, KML, GPX.

The format is known by the content, not by the name.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final
from xml.etree.ElementTree import Element, ParseError

import defusedxml.ElementTree
from defusedxml import DefusedXmlException

from tilecache_daemon.flightplans.qgroundcontrol import read_plan, read_waypoints
from tilecache_daemon.flightplans.shapes import (
    FlightPlanError,
    Line,
    PolygonShape,
    Shapes,
    position,
    split_long_edges,
    without_repetitions,
    wrapped,
)

MAX_FILE_BYTES: Final = 64 * 1024 * 1024
_FORMATS: Final = "a QGroundControl plan, QGC WPL 110, GeoJSON, KML or GPX"
_MAX_DEPTH: Final = 32
_COLLECTIONS: Final = {"FeatureCollection": "features", "GeometryCollection": "geometries"}


def read_file(path: Path) -> Shapes:
    """The lines and areas of a file. Raises FlightPlanError if it is none of the formats, is
    damaged, or has no position in it; OSError if it cannot be read."""
    with path.open("rb") as file:
        # A pipe or a device does not say its size.
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise FlightPlanError(f"is larger than {MAX_FILE_BYTES // 1024 // 1024} MiB")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise FlightPlanError(f"is not text in UTF-8, so it is not {_FORMATS}") from None
    shapes = _read(text)
    if not (shapes.lines or shapes.areas or shapes.other_count):
        raise FlightPlanError("has no position in it")
    return shapes


def _read(text: str) -> Shapes:
    start = text.lstrip()
    if start.startswith("{"):
        return _read_json(text)
    if start.startswith("QGC WPL"):
        return read_waypoints(start)
    if start.startswith("<"):
        return _read_xml(start)
    raise FlightPlanError(f"is not {_FORMATS}")


def _read_json(text: str) -> Shapes:
    try:
        document = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise FlightPlanError(f"is not JSON: {error}") from None
    if document.get("fileType") == "Plan":
        return read_plan(document)
    if "type" not in document:
        raise FlightPlanError("is JSON, but neither a QGroundControl plan nor GeoJSON")
    shapes = Shapes()
    _add_geojson(shapes, document, 0)
    return shapes


def _add_geojson(shapes: Shapes, node: Any, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise FlightPlanError("is nested too deeply")
    kind = node.get("type") if isinstance(node, dict) else None
    if isinstance(kind, str) and kind in _COLLECTIONS:
        for member in _list(node.get(_COLLECTIONS[kind]), _COLLECTIONS[kind]):
            _add_geojson(shapes, member, depth + 1)
    elif kind != "Feature":
        _add_geometry(shapes, kind, node.get("coordinates") if isinstance(node, dict) else None)
    elif node.get("geometry") is not None:
        # A feature without a location has a geometry of null.
        _add_geojson(shapes, node["geometry"], depth + 1)


def _add_geometry(shapes: Shapes, kind: Any, coordinates: Any) -> None:
    match kind:
        case "LineString":
            shapes.lines.append(_geojson_line(coordinates))
        case "MultiLineString":
            shapes.lines += map(_geojson_line, _list(coordinates, "coordinates"))
        case "Polygon":
            shapes.areas.append(_geojson_polygon(coordinates))
        case "MultiPolygon":
            shapes.areas += map(_geojson_polygon, _list(coordinates, "coordinates"))
        case "Point" | "MultiPoint":
            shapes.other_count += 1
        case _:
            raise FlightPlanError(f"has an object of type {kind!r}, which GeoJSON does not know")


def _geojson_line(coordinates: Any) -> Line:
    return without_repetitions(_geojson_positions(coordinates))


def _geojson_polygon(coordinates: Any) -> PolygonShape:
    rings = [
        list(map(wrapped, split_long_edges(_open(list(_geojson_positions(ring))))))
        for ring in _list(coordinates, "coordinates")
    ]
    if not rings:
        raise FlightPlanError("has a polygon without a ring")
    return PolygonShape(rings[0], rings[1:])


def _geojson_positions(coordinates: Any) -> Iterator[tuple[float, float]]:
    for index, point in enumerate(_list(coordinates, "coordinates")):
        if not isinstance(point, list) or len(point) < 2:
            raise FlightPlanError(
                f"coordinates[{index}] is {point!r}, not a longitude and latitude"
            )
        yield position(f"coordinates[{index}]", point[1], point[0])


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise FlightPlanError(f"{name} is {value!r}, not a list")
    return value


def _read_xml(text: str) -> Shapes:
    try:
        root = defusedxml.ElementTree.fromstring(text)
    except (ParseError, DefusedXmlException, ValueError) as error:
        raise FlightPlanError(f"is not XML that can be read: {error}") from None
    readers: dict[str, Callable[[Element], Shapes]] = {"kml": _read_kml, "gpx": _read_gpx}
    reader = readers.get(_name(root))
    if reader is None:
        raise FlightPlanError(f"is XML with a <{_name(root)}>, but neither KML nor GPX")
    return reader(root)


def _read_kml(root: Element) -> Shapes:
    shapes = Shapes()
    for element in root.iter():
        match _name(element):
            case "LineString":
                shapes.lines.append(_kml_line(element))
            case "Track":
                fixes = (coord.text or "" for coord in _each(element, "coord"))
                shapes.lines.append([_kml_position(fix.split()) for fix in fixes])
            case "Polygon":
                shapes.areas.append(_kml_polygon(element))
            case "Point":
                shapes.other_count += 1
    return shapes


def _kml_polygon(element: Element) -> PolygonShape:
    rings = [
        _open(_kml_line(ring))
        for name in ("outerBoundaryIs", "innerBoundaryIs")
        for ring in _each(element, name)
    ]
    if not rings:
        raise FlightPlanError("has a polygon without a boundary")
    return PolygonShape(rings[0], rings[1:])


def _kml_line(element: Element) -> Line:
    texts = (coordinates.text or "" for coordinates in _each(element, "coordinates"))
    return without_repetitions(
        _kml_position(fix.split(",")) for text in texts for fix in text.split()
    )


def _kml_position(parts: list[str]) -> tuple[float, float]:
    if len(parts) < 2:
        raise FlightPlanError(f"coordinates {','.join(parts)!r} are not LON,LAT")
    return wrapped(position("coordinates", parts[1], parts[0]))


def _read_gpx(root: Element) -> Shapes:
    shapes = Shapes(other_count=sum(1 for _ in _each(root, "wpt")))
    for line, point in (("trkseg", "trkpt"), ("rte", "rtept")):
        for element in _each(root, line):
            fixes = _each(element, point)
            shapes.lines.append(
                without_repetitions(
                    position(point, fix.get("lat"), fix.get("lon")) for fix in fixes
                )
            )
    return shapes


def _open(ring: Line) -> Line:
    """A ring without the repetition of its first position."""
    return ring[:-1] if len(ring) > 1 and ring[0] == ring[-1] else ring


def _each(element: Element, name: str) -> Iterator[Element]:
    """Elements by their local names: versions of KML and GPX differ in namespaces."""
    return (each for each in element.iter() if _name(each) == name)


def _name(element: Element) -> str:
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""
