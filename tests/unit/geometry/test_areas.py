"""The cells of polygons and corridors, against definitions that are slow but plain."""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise, product

import numpy as np
import pytest
import shapely
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tilecache.mercator import (
    EARTH_RADIUS_METERS,
    MAX_LATITUDE,
    BoundingBox,
    CellRectangle,
    cell_at,
    cell_bounds,
    cells_in_box,
    cells_in_circle,
    count_cells,
)
from tilecache_daemon.geometry.areas import Area, Box, cells_in_areas, cells_in_row
from tilecache_daemon.geometry.corridor import AntipodalLegError, Corridor
from tilecache_daemon.geometry.polygon import InvalidPolygonError, Polygon

Cell = tuple[int, int]
Position = tuple[float, float]

BRUTE_ZOOM = 4
SLIVER_DEGREES = 1e-4  # more than the rounding that is tolerated, far less than a cell
SAMPLES = 300

latitudes = st.floats(-90, 90)
longitudes = st.floats(-180, 180)
positions = st.tuples(latitudes, longitudes)


def all_cells(rectangles: Iterable[CellRectangle]) -> set[Cell]:
    """The cells of rectangles, which must not overlap."""
    found = list(rectangles)
    cells = {
        cell
        for x_from, x_to, y_from, y_to in found
        for cell in product(range(x_from, x_to + 1), range(y_from, y_to + 1))
    }
    assert len(cells) == count_cells(found)
    return cells


def cells_of(zoom: int, *areas: Area) -> set[Cell]:
    return all_cells(cells_in_areas(zoom, areas))


def corners(box: BoundingBox) -> list[Position]:
    return [
        (box.south, box.west),
        (box.south, box.east),
        (box.north, box.east),
        (box.north, box.west),
    ]


def star(draw: st.DrawFn, centre: Position, most: float) -> list[Position]:
    """A ring around a centre, with points in the order of their directions."""
    count = draw(st.integers(3, 9))
    radii = [draw(st.floats(most / 20, most)) for _ in range(count)]
    return [
        (
            centre[0] + radius * math.sin(2 * math.pi * index / count) / 2,
            centre[1] + radius * math.cos(2 * math.pi * index / count),
        )
        for index, radius in enumerate(radii)
    ]


@st.composite
def stars(draw: st.DrawFn) -> tuple[list[Position], list[Position]]:
    """An outer ring and a hole, in longitudes from -540 to 540."""
    centre = draw(st.floats(-89, 89)), draw(longitudes)
    return star(draw, centre, 150.0), star(draw, centre, 3.0)


def wrapped(ring: Sequence[Position]) -> list[Position]:
    return [
        (min(max(latitude, -90), 90), (longitude + 180) % 360 - 180) for latitude, longitude in ring
    ]


@given(stars())
def test_a_polygon_has_the_cells_that_it_overlaps(
    rings: tuple[list[Position], list[Position]],
) -> None:
    outer, hole = ([(min(max(lat, -90), 90), lon) for lat, lon in ring] for ring in rings)
    plain = shapely.Polygon([(x, y) for y, x in outer], [[(x, y) for y, x in hole]])
    assume(plain.is_valid and len({lat for lat, _ in outer}) > 1)
    assume(max(abs(a[1] - b[1]) for a, b in zip(outer, outer[1:] + outer[:1], strict=True)) < 179)

    found = cells_of(BRUTE_ZOOM, Polygon(wrapped(outer), [wrapped(hole)]))

    for x, y in product(range(1 << BRUTE_ZOOM), repeat=2):
        bounds = cell_bounds(BRUTE_ZOOM, x, y)
        turns = [
            shapely.box(bounds.west + turn, bounds.south, bounds.east + turn, bounds.north)
            for turn in (-720, -360, 0, 360, 720)
        ]
        inner = [shapely.buffer(cell, -SLIVER_DEGREES, join_style="mitre") for cell in turns]
        if any(plain.intersects(cell) for cell in inner):
            assert (x, y) in found
        elif not any(plain.distance(cell) < SLIVER_DEGREES for cell in turns):
            assert (x, y) not in found


# At 180 degrees exactly, both ways round are as short.
@given(latitudes, latitudes, longitudes, st.floats(0.01, 179.99), st.integers(0, 12))
@example(-90, 90, 180.0, 10.0, 3)
@example(-90, 90, -180.0, 179.0, 5)
def test_a_box_equals_the_polygon_of_its_corners(
    latitude_1: float, latitude_2: float, west: float, width: float, zoom: int
) -> None:
    east = west + width if west + width <= 180 else west + width - 360
    box = BoundingBox(min(latitude_1, latitude_2), west, max(latitude_1, latitude_2), east)
    assume(box.north - box.south > 1e-3)
    assume((east - west) % 360 <= 180)
    rectangles = list(cells_in_box(zoom, box))
    assume(count_cells(rectangles) < 100_000)

    assert cells_of(zoom, Polygon(corners(box))) == all_cells(rectangles)
    assert cells_of(zoom, Box(box)) == all_cells(rectangles)


@given(
    st.integers(0, 22).flatmap(
        lambda zoom: st.tuples(
            st.just(zoom), st.integers(0, (1 << zoom) - 1), st.integers(0, (1 << zoom) - 1)
        )
    )
)
def test_the_polygon_of_a_cells_corners_has_that_cell_alone(cell: tuple[int, int, int]) -> None:
    zoom, x, y = cell
    assume(zoom > 0)
    assert cells_of(zoom, Polygon(corners(cell_bounds(zoom, x, y)))) == {(x, y)}


def test_an_edge_is_straight_in_longitude_and_latitude() -> None:
    """Straight in Mercator, the edge from 44 N 22 E to 53 N 41 E would lie 22 km beside."""
    sliver = Polygon([(44.0, 22.0), (53.0, 41.0), (53.0001, 41.0), (44.0001, 22.0)])
    middle = (48.5, 31.5)
    cells = cells_of(13, sliver)
    assert cell_at(13, *middle) in cells
    assert cell_at(13, 48.7, 31.5) not in cells


def test_a_polygon_may_cross_the_antimeridian() -> None:
    ring = [(-20.0, 176.0), (-20.0, -178.0), (-15.0, -178.0), (-15.0, 176.0)]
    hole = [(-18.0, -179.5), (-18.0, -178.5), (-16.0, -178.5), (-16.0, -179.5)]
    for inner in ([], [hole]):
        found = cells_of(10, Polygon(ring, inner))
        assert cell_at(10, -17.0, 177.0) in found
        assert (cell_at(10, -17.0, -179.0) in found) == (not inner)
        assert cell_at(10, -17.0, 0.0) not in found


def test_a_hole_within_a_cell_takes_no_cell_away() -> None:
    ring = [(0.0, 0.0), (0.0, 90.0), (60.0, 90.0), (60.0, 0.0)]
    hole = [(10.0, 10.0), (10.0, 11.0), (11.0, 11.0), (11.0, 10.0)]
    assert cells_of(3, Polygon(ring, [hole])) == cells_of(3, Polygon(ring))


@pytest.mark.parametrize(
    ("outer", "holes", "ring", "words"),
    [
        ([(0.0, 0.0), (0.0, 1.0)], [], 0, "three"),
        ([(0.0, 0.0), (0.0, 1.0), (0.0, 0.0)], [], 0, "three"),
        ([(0.0, 0.0), (0.0, 1.0), (0.0, 2.0)], [], 0, "simple"),
        ([(0.0, 0.0), (1.0, 1.0), (1.0, 0.0), (0.0, 1.0)], [], 0, "Self-intersection"),
        ([(80.0, 0.0), (80.0, 120.0), (80.0, -120.0)], [], 0, "pole"),
        (
            [(0.0, 0.0), (0.0, 1.0), (1.0, 1.0), (1.0, 0.0)],
            [[(5.0, 5.0), (5.0, 6.0), (6.0, 6.0)]],
            1,
            "hole",
        ),
    ],
)
def test_a_polygon_without_a_defined_inside_is_refused(
    outer: list[Position], holes: list[list[Position]], ring: int, words: str
) -> None:
    with pytest.raises(InvalidPolygonError, match=words) as refusal:
        Polygon(outer, holes)
    assert refusal.value.ring == ring


def points_on_leg(start: Position, end: Position, count: int) -> list[Position]:
    """Positions on a leg at equal distances, by the interpolation of vectors."""
    vectors = []
    for latitude, longitude in (start, end):
        phi, theta = math.radians(latitude), math.radians(longitude)
        vectors.append(
            np.array(
                [math.cos(phi) * math.cos(theta), math.cos(phi) * math.sin(theta), math.sin(phi)]
            )
        )
    angle = math.acos(min(max(float(vectors[0] @ vectors[1]), -1.0), 1.0))
    if angle < 1e-5:
        fractions = np.linspace(0, 1, count)
        mixed = [vectors[0] * (1 - f) + vectors[1] * f for f in fractions]
    else:
        mixed = [
            (vectors[0] * math.sin((1 - f) * angle) + vectors[1] * math.sin(f * angle))
            for f in np.linspace(0, 1, count)
        ]
    return [
        (
            math.degrees(math.atan2(x[2], math.hypot(x[0], x[1]))),
            math.degrees(math.atan2(x[1], x[0])),
        )
        for x in mixed
    ]


def leg_meters(start: Position, end: Position) -> float:
    lat1, lon1, lat2, lon2 = map(math.radians, (*start, *end))
    half = (
        math.sin((lat2 - lat1) / 2) ** 2
        + math.cos(lat1) * math.cos(lat2) * math.sin((lon2 - lon1) / 2) ** 2
    )
    return 2 * EARTH_RADIUS_METERS * math.asin(min(1.0, math.sqrt(half)))


def circles_along(
    zoom: int, route: Sequence[Position], half_width: float, *, whole: bool
) -> set[Cell]:
    """The cells of circles around positions of a route, all within its corridor; with `whole`,
    so much larger that they contain all of the corridor."""
    cells: set[Cell] = set()
    for start, end in pairwise(route):
        step = leg_meters(start, end) / (SAMPLES - 1)
        radius = half_width + step / 2 + 1e-3 if whole else half_width - 1e-6 * half_width
        for latitude, longitude in points_on_leg(start, end, SAMPLES):
            cells |= all_cells(cells_in_circle(zoom, latitude, longitude, radius))
    return cells


@st.composite
def legs(draw: st.DrawFn) -> tuple[Position, Position]:
    """Legs of 1 m to 5,000 km, from anywhere in any direction."""
    latitude, longitude = draw(st.floats(-89.9, 89.9)), draw(longitudes)
    meters = draw(st.sampled_from([1.0, 50.0, 3_000.0, 100_000.0, 1_000_000.0, 5_000_000.0]))
    bearing = math.radians(draw(st.floats(0, 360)))
    angle, phi = meters / EARTH_RADIUS_METERS, math.radians(latitude)
    end = math.asin(
        min(
            max(
                math.sin(phi) * math.cos(angle)
                + math.cos(phi) * math.sin(angle) * math.cos(bearing),
                -1.0,
            ),
            1.0,
        )
    )
    turn = math.atan2(
        math.sin(bearing) * math.sin(angle) * math.cos(phi),
        math.cos(angle) - math.sin(phi) * math.sin(end),
    )
    east = (longitude + math.degrees(turn) + 180) % 360 - 180
    return (latitude, longitude), (math.degrees(end), east)


@given(legs(), st.sampled_from([1.0, 100.0, 2_000.0, 50_000.0, 600_000.0, 1_000_000.0]), st.data())
@example(((80.0, 0.0), (80.0, 180.0)), 100_000.0, None)
@example(((0.0, -20.0), (0.0, 20.0)), 100_000.0, None)
@example(((10.0, 179.0), (-10.0, -179.0)), 50_000.0, None)
@example(((-80.0, 10.0), (80.0, 10.0)), 100_000.0, None)
@example(((86.0, -60.0), (86.0, 60.0)), 50_000.0, None)
def test_a_corridor_is_what_circles_along_its_route_are(
    leg: tuple[Position, Position], half_width: float, data: st.DataObject | None
) -> None:
    # Less than a millionth of a cell is no overlap, which circles and corridors round apart.
    half_width = max(half_width, leg_meters(*leg) / 10_000)
    longest = max(half_width, leg_meters(*leg))
    # So that a cell is about a twentieth of the corridor.
    zoom = min(max(math.floor(math.log2(40_000_000 * 20 / longest)) - 2, 0), 22)
    within = circles_along(zoom, leg, half_width, whole=False)
    around = circles_along(zoom, leg, half_width, whole=True)

    found = cells_of(zoom, Corridor(leg, half_width))

    assert within <= found
    assert found <= around


@given(positions, st.floats(1.0, 1_000_000.0), st.integers(0, 12))
def test_a_corridor_of_one_waypoint_equals_the_circle(
    centre: Position, radius: float, zoom: int
) -> None:
    # Less than a millionth of a cell is no overlap, which they round apart.
    assume(1e-4 < radius / (40_000_000 / (1 << zoom)) < 100)
    circle = all_cells(cells_in_circle(zoom, *centre, radius))

    assert cells_of(zoom, Corridor([centre], radius)) == circle
    assert cells_of(zoom, Corridor([centre, centre], radius)) == circle


@example([(0.0, 0.0), (2.2e-313, 1.0)], 1_000.0)  # Its great circle is nearly the equator.
@given(st.lists(positions, min_size=2, max_size=6), st.floats(1_000.0, 500_000.0))
def test_a_route_is_the_union_of_its_legs(route: list[Position], half_width: float) -> None:
    longest = math.pi * EARTH_RADIUS_METERS * 0.999
    assume(all(leg_meters(a, b) < longest for a, b in pairwise(route)))
    parts = [cells_of(5, Corridor([start, end], half_width)) for start, end in pairwise(route)]
    assert cells_of(5, Corridor(route, half_width)) == set().union(*parts)
    assert cells_of(5, Corridor(route[::-1], half_width)) == set().union(*parts)


def test_a_leg_between_opposite_positions_is_refused() -> None:
    with pytest.raises(AntipodalLegError) as refusal:
        Corridor([(0.0, 0.0), (10.0, 0.0), (-10.0, 180.0)], 1_000.0)
    assert refusal.value.waypoint == 2


@given(stars(), stars(), st.integers(0, 6))
def test_a_union_has_the_cells_of_each(
    first: tuple[list[Position], list[Position]],
    second: tuple[list[Position], list[Position]],
    zoom: int,
) -> None:
    areas: list[Area] = [Corridor(wrapped(first[0])[:2], 50_000.0)]
    areas.append(Corridor(wrapped(second[0])[:3], 10_000.0))
    areas.append(Box(BoundingBox(-10.0, 170.0, 10.0, -170.0)))
    assert cells_of(zoom, *areas) == set().union(*(cells_of(zoom, area) for area in areas))


@given(legs(), st.sampled_from([1_000.0, 300_000.0]))
def test_a_row_is_that_of_the_area(leg: tuple[Position, Position], half_width: float) -> None:
    areas = [Corridor(leg, half_width), Box(BoundingBox(10, 10, 11, 11))]
    cells = list(cells_in_areas(6, areas))
    for y in range(64):
        row = [part for part in cells if part.y_from == y]
        assert cells_in_row(6, areas, y) == row


@given(legs(), st.sampled_from([1_000.0, 300_000.0]), st.integers(0, 5))
def test_cells_that_an_area_nearly_overlaps_cover_all_of_it(
    leg: tuple[Position, Position], half_width: float, coarse: int
) -> None:
    area = Corridor(leg, half_width)
    covering = all_cells(cells_in_areas(coarse, [area], rounding_cells=-1e-6))
    for x, y in cells_of(coarse + 3, area):
        assert (x >> 3, y >> 3) in covering


def test_an_area_beyond_the_projection_has_no_cells() -> None:
    assert cells_of(5, Corridor([(88.0, 0.0), (89.0, 90.0)], 1_000.0)) == set()
    assert cells_of(5, Polygon([(86.0, 0.0), (89.0, 0.0), (89.0, 9.0)])) == set()


def test_a_polygon_beyond_the_projection_is_cut_at_its_edge() -> None:
    wide_at_the_top = Polygon(
        [(80.0, 10.0), (89.0, 10.0), (89.0, 170.0), (86.0, 170.0), (86.0, 11.0), (80.0, 11.0)]
    )
    assert {x for x, _ in cells_of(5, wide_at_the_top)} == {cell_at(5, 80.0, 10.5)[0]}
    assert MAX_LATITUDE < 86


def test_the_cost_follows_the_cells_of_the_answer() -> None:
    """The box around this corridor has 2e11 cells."""
    corridor = Corridor([(-60.0, -170.0), (60.0, 170.0), (61.0, 170.0)], 5.0)
    rows = cells_in_areas(18, [corridor])
    found = [next(rows) for _ in range(1_000)]
    assert len(found) == 1_000
