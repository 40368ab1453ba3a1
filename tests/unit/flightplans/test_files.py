"""Routes and areas of files, in each format."""

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilecache_daemon.flightplans.files import MAX_FILE_BYTES, read_file
from tilecache_daemon.flightplans.shapes import (
    CircleShape,
    CorridorShape,
    FlightPlanError,
    PolygonShape,
    Shapes,
)
from tilecache_daemon.geometry.areas import Area, cells_in_areas
from tilecache_daemon.geometry.corridor import Corridor
from tilecache_daemon.geometry.polygon import Polygon

PLANS = Path(__file__).parents[2] / "plans"
HOME = (50.42, 30.58)
WAYPOINTS = [(50.40, 30.62), (50.36, 30.70)]
SURVEY = [(50.345, 30.72), (50.345, 30.74), (50.335, 30.74), (50.335, 30.72)]
TOWN = [(50.3, 30.5), (50.3, 30.8), (50.4, 30.8), (50.4, 30.5)]


def read(tmp_path: Path, content: object) -> Shapes:
    """The shapes of a file with some content, as JSON if it is no text."""
    path = tmp_path / "file"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_file(path)


def plan(*items: dict[str, Any], home: object = (50.0, 30.0, 100), **fence: Any) -> dict[str, Any]:
    return {
        "fileType": "Plan",
        "geoFence": fence,
        "mission": {"items": list(items), "plannedHomePosition": home},
    }


def item(command: int, latitude: Any, longitude: Any, frame: int = 3) -> dict[str, Any]:
    params = [0, 0, 0, None, latitude, longitude, 50]
    return {"type": "SimpleItem", "command": command, "frame": frame, "params": params}


def test_a_plans_route_is_home_its_waypoints_and_home() -> None:
    (route,) = read_file(PLANS / "survey.plan").lines

    assert route == [HOME, *WAYPOINTS, *SURVEY, (50.31, 30.79), HOME]


def test_a_plans_area_is_its_surveys_and_fences_less_the_exclusions() -> None:
    areas = read_file(PLANS / "survey.plan").areas

    assert all(isinstance(area, PolygonShape) for area in areas)
    covered = contained(areas)
    for position in ((50.34, 30.73), (50.31, 30.51), (50.39, 30.79)):
        assert covered(position), position
    for position in ((50.36, 30.66), (50.325, 30.75), (50.41, 30.6)):
        assert not covered(position), position


def contained(areas: list[Any]) -> Any:
    """Whether a position lies in any of some polygons, by cells of a metre."""
    polygons: list[Area] = [Polygon(area.outer, area.holes) for area in areas]

    def contains(position: tuple[float, float]) -> bool:
        here = set(cells_in_areas(20, [Corridor([position], 0.1)]))
        rows = {cells.y_from for cells in here}
        return any(
            cells.x_from <= each.x_from <= cells.x_to
            for cells in cells_in_areas(20, polygons)
            if cells.y_from in rows
            for each in here
            if each.y_from == cells.y_from
        )

    return contains


def test_a_mission_text_begins_with_home() -> None:
    shapes = read_file(PLANS / "mission.waypoints")

    assert shapes.lines == [[HOME, *WAYPOINTS, HOME]]
    assert shapes.areas == []


def test_each_track_and_route_of_a_gpx_file_is_a_line() -> None:
    shapes = read_file(PLANS / "track.gpx")

    assert shapes.lines == [
        [HOME, (50.40, 30.62)],
        [(49.90, 30.00), (49.95, 30.10)],
        [(50.0, 30.5), (50.1, 30.5)],
    ]


def test_a_kml_file_has_lines_tracks_and_polygons_with_holes() -> None:
    shapes = read_file(PLANS / "places.kml")

    assert shapes.lines == [[HOME, *WAYPOINTS], [(50.1, 30.1), (50.1, 30.2)]]
    hole = [(50.33, 30.6), (50.33, 30.7), (50.36, 30.7)]
    assert shapes.areas == [PolygonShape(TOWN, [hole])]


def test_a_geojson_file_has_lines_and_polygons_however_they_are_nested() -> None:
    shapes = read_file(PLANS / "areas.geojson")

    assert shapes.lines == [
        [HOME, (50.40, 30.62)],
        [(50, 30), (50, 31)],
        [(51, 30), (51, 31)],
    ]
    hole = [(50.33, 30.6), (50.36, 30.6), (50.36, 30.7)]
    other = [(50.3, 31.5), (50.3, 31.8), (50.4, 31.8)]
    assert shapes.areas == [PolygonShape(TOWN, [hole]), PolygonShape(other, [])]


def test_home_ends_the_route_only_where_the_mission_returns_there(tmp_path: Path) -> None:
    there = read(tmp_path, plan(item(22, 0, 0), item(16, 51, 31)))
    back = read(tmp_path, plan(item(22, 0, 0), item(16, 51, 31), item(20, 0, 0)))
    homeless = read(tmp_path, plan(item(16, 51, 31), item(21, 52, 31), home=None))

    assert there.lines == [[(50, 30), (51, 31)]]
    assert back.lines == [[(50, 30), (51, 31), (50, 30)]]
    assert homeless.lines == [[(51, 31), (52, 31)]]


@pytest.mark.parametrize(
    "other",
    [
        item(16, 0, 0),
        item(16, None, None),
        item(201, 10, 10),
        item(189, 10, 10),
        item(80, 10, 10),
        item(16, 10, 10, frame=1),
        item(16, 10, 10, frame=2),
        item(93, 0, 0),
    ],
)
def test_what_is_no_waypoint_is_left_out(tmp_path: Path, other: dict[str, Any]) -> None:
    shapes = read(tmp_path, plan(item(16, 51, 31), other, item(16, 52, 31)))

    assert shapes.lines == [[(50, 30), (51, 31), (52, 31)]]


def corridor_scan(*points: tuple[float, float], width: float) -> dict[str, Any]:
    return {
        "type": "ComplexItem",
        "complexItemType": "CorridorScan",
        "CorridorWidth": width,
        "polyline": [list(point) for point in points],
        "TransectStyleComplexItem": {"Items": [item(16, *point) for point in points]},
    }


def cells(areas: Iterable[Area], zoom: int) -> set[tuple[int, int]]:
    return {
        (x, y)
        for found in cells_in_areas(zoom, list(areas))
        for x in range(found.x_from, found.x_to + 1)
        for y in range(found.y_from, found.y_to + 1)
    }


def test_patterns_and_landings_are_part_of_the_route(tmp_path: Path) -> None:
    corridor = corridor_scan((51, 31), (51, 32), width=50)
    landing = {
        "type": "ComplexItem",
        "complexItemType": "fwLandingPattern",
        "landingApproachCoordinate": [51, 33, 40],
        "landCoordinate": [51, 34, 0],
    }
    shapes = read(tmp_path, plan(corridor, landing))

    assert shapes.lines == [[(50, 30), (51, 31), (51, 32), (51, 33), (51, 34)]]
    assert shapes.areas == [CorridorShape([(51, 31), (51, 32)], 25.0)]


def test_fences_without_exclusions_are_kept_as_they_are(tmp_path: Path) -> None:
    ring = [[50, 30], [50, 31], [51, 31]]
    circle = {"center": [50, 30], "radius": 500}
    shapes = read(
        tmp_path,
        plan(
            polygons=[{"inclusion": True, "polygon": ring}],
            circles=[{"inclusion": True, "circle": circle}],
        ),
    )

    assert shapes.areas == [
        PolygonShape([(50, 30), (50, 31), (51, 31)]),
        CircleShape((50, 30), 500),
    ]


def test_an_excluded_fence_may_lie_across_the_antimeridian(tmp_path: Path) -> None:
    ring = [[-18, 179], [-18, -179], [-17, -179], [-17, 179]]
    hole = [[-17.8, -179.9], [-17.8, -179.1], [-17.2, -179.1], [-17.2, -179.9]]
    shapes = read(
        tmp_path,
        plan(
            polygons=[
                {"inclusion": True, "polygon": ring},
                {"inclusion": False, "polygon": hole},
            ]
        ),
    )

    (area,) = shapes.areas
    assert isinstance(area, PolygonShape)
    assert len(area.holes) == 1
    assert {longitude for _, longitude in area.outer} == {179, -179}
    assert {round(longitude, 6) for _, longitude in area.holes[0]} == {-179.9, -179.1}


def test_an_excluded_fence_cuts_a_corridor(tmp_path: Path) -> None:
    line = [(50.00, 179.96), (50.02, 179.99), (50.01, -179.97)]
    fence = [(50.0, 179.98), (50.03, 179.98), (50.03, -179.99), (50.0, -179.99)]
    shapes = read(
        tmp_path,
        plan(
            corridor_scan(*line, width=500),
            polygons=[{"inclusion": False, "polygon": [list(point) for point in fence]}],
        ),
    )

    polygons = [area for area in shapes.areas if isinstance(area, PolygonShape)]
    left = cells((Polygon(area.outer) for area in polygons), 17)
    whole, cut = cells([Corridor(line, 250)], 17), cells([Polygon(fence)], 17)
    assert len(polygons) == len(shapes.areas) == 2
    assert left <= whole
    assert whole - cut <= left
    edge = {(x, y) for x, y in cut if {(x - 1, y), (x + 1, y), (x, y - 1), (x, y + 1)} - cut}
    assert left & cut <= edge
    assert left & cut


def test_long_edges_of_geojson_go_the_long_way(tmp_path: Path) -> None:
    """As RFC 7946 has them: an edge does not cross the antimeridian."""
    ring = [[-170, 10], [170, 10], [170, 20], [-170, 20], [-170, 10]]
    (area,) = read(tmp_path, {"type": "Polygon", "coordinates": [ring]}).areas
    assert isinstance(area, PolygonShape)
    columns = {
        x
        for cells in cells_in_areas(5, [Polygon(area.outer)])
        for x in range(cells.x_from, cells.x_to + 1)
    }

    assert columns == set(range(32)) - {0, 31} | {0, 31}
    beside = [[170, 10], [190, 10], [190, 20], [170, 20], [170, 10]]
    (area,) = read(tmp_path, {"type": "Polygon", "coordinates": [beside]}).areas
    assert isinstance(area, PolygonShape)
    columns = {
        x
        for cells in cells_in_areas(5, [Polygon(area.outer)])
        for x in range(cells.x_from, cells.x_to + 1)
    }
    assert columns == {0, 31}


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    text = (PLANS / "mission.waypoints").read_bytes()
    assert read(tmp_path, b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n")).lines


GPX = '<gpx xmlns="http://www.topografix.com/GPX/1/1">{}</gpx>'
KML = '<kml xmlns="http://www.opengis.net/kml/2.2"><Placemark>{}</Placemark></kml>'
WPL = "QGC WPL 110\n"


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", "is not a QGroundControl plan"),
        ("50.1,30.2", "is not a QGroundControl plan"),
        (b"\xff\xfe\x00", "UTF-8"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not a QGroundControl plan"),
        ('{"type":' * 100_000, "is not JSON"),
        ({"fileType": "Plan"}, "mission.items is missing"),
        ({"a": 1}, "neither a QGroundControl plan nor GeoJSON"),
        ({"type": "Topology"}, "'Topology'"),
        ({"type": ["x"]}, "GeoJSON does not know"),
        ({"type": "FeatureCollection", "features": 1}, "features is 1"),
        ({"type": "FeatureCollection", "features": []}, "no position"),
        ({"type": "LineString", "coordinates": [[1, 95]]}, "coordinates[0]: latitude 95"),
        ({"type": "LineString", "coordinates": [[1, "x"]]}, "latitude 'x' is not a number"),
        ({"type": "LineString", "coordinates": [[True, 1]]}, "longitude True"),
        ({"type": "LineString", "coordinates": [1]}, "coordinates[0] is 1"),
        ({"type": "Polygon", "coordinates": []}, "without a ring"),
        ({"type": "LineString", "coordinates": [[600, 5]]}, "longitude 600"),
        ("QGC WPL 120\n", "QGC WPL 110"),
        (WPL + "1 0 3 16 0 0 0 0 50 30\n", "line 2: has 10 columns"),
        (WPL + "1\t0\t3\tx\t0\t0\t0\t0\t50\t30\t5\t1\n", "line 2: 'x' is not a whole"),
        (WPL + "1\t0\t3\t16\t0\t0\t0\t0\t95\t30\t5\t1\n", "line 2: latitude 95"),
        (WPL, "no position"),
        ("<html/>", "<html>"),
        ("<gpx", "is not XML"),
        ('<!DOCTYPE x [<!ENTITY a "a">]><gpx>&a;</gpx>', "is not XML that can be read"),
        (GPX.format(""), "no position"),
        (GPX.format('<rte><rtept lat="1"/></rte>'), "longitude None"),
        (KML.format("<LineString><coordinates>1</coordinates></LineString>"), "LON,LAT"),
        (KML.format("<Polygon/>"), "without a boundary"),
        (plan({"type": "SimpleItem", "params": [1]}), "mission.items[0].params"),
        (plan({"type": "SimpleItem", "params": [0] * 7}), "mission.items[0]: None"),
        (plan(item(16, 95, 30)), "mission.items[0]: latitude 95"),
        (plan(circles=[{"circle": {"center": [1, 2], "radius": -1}}]), "radius: -1"),
        (plan(polygons=[{"polygon": [[1, 2], [1, 2], [1, 3]]}]), "fewer than three"),
        (plan(home=None), "no position"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_what_is_wrong(
    tmp_path: Path, content: object, fault: str
) -> None:
    with pytest.raises(FlightPlanError) as refusal:
        read(tmp_path, content)
    assert fault in str(refusal.value)


def test_a_huge_file_and_an_endless_one_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    for each in (path, Path("/dev/zero")):
        with pytest.raises(FlightPlanError, match="larger than 64 MiB"):
            read_file(each)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                (
                    *("type", "coordinates", "features", "geometry", "items", "params", "command"),
                    *("frame", "polygon", "complexItemType", "circle", "center", "radius"),
                )
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


@given(
    json_values,
    json_values,
    st.sampled_from(["Polygon", "LineString", "MultiPolygon", "FeatureCollection", "Feature"]),
)
def test_any_json_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, first: object, second: object, kind: str
) -> None:
    folder = tmp_path_factory.mktemp("json")
    for content in (
        {"type": kind, "coordinates": first, "features": [second], "geometry": first},
        plan(first, second, polygons=first, circles=[second]),  # type: ignore[arg-type]
        {"fileType": "Plan", "mission": first, "geoFence": second},
        {"fileType": "Plan", "mission": {"items": [first]}, "geoFence": {"circles": second}},
    ):
        with suppress(FlightPlanError):
            read(folder, content)
