"""Cells and areas, against definitions that are slow but plain."""

import math
from itertools import product

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.tiles import cells
from tilecache.mercator import (
    BLOCK_BITS,
    BLOCK_CELLS,
    EARTH_RADIUS_METERS,
    EQUATOR_METERS,
    MAX_LATITUDE,
    BlockKey,
    BoundingBox,
    CellRectangle,
    block_of,
    blocks_in,
    bounds_of,
    cell_at,
    cell_bounds,
    cell_centre,
    cell_edge_meters,
    cells_in_box,
    cells_in_circle,
    cells_of,
    count_cells,
)

BRUTE_ZOOM = 4
SLIVER_DEGREES = 1e-4  # more than the rounding that is tolerated, far less than a cell
CIRCLE_ZOOM = 3
SAMPLES = 12

BLOCK_ZOOM = BLOCK_BITS + 2

longitudes = st.floats(-180, 180)
latitudes = st.floats(-90, 90)
positions = st.integers(0, (1 << BLOCK_ZOOM) - 1)
rectangles = st.tuples(positions, positions, positions, positions).map(
    lambda ends: CellRectangle(*sorted(ends[:2]), *sorted(ends[2:]))
)


def all_cells(rectangles: list[CellRectangle]) -> set[tuple[int, int]]:
    """The cells of rectangles, which must not overlap."""
    found = [
        cell
        for x_from, x_to, y_from, y_to in rectangles
        for cell in product(range(x_from, x_to + 1), range(y_from, y_to + 1))
    ]
    assert len(found) == len(set(found)) == count_cells(rectangles)
    return set(found)


def every_cell(zoom: int) -> list[tuple[int, int]]:
    return list(product(range(1 << zoom), repeat=2))


def great_circle_meters(lat1: float, lon1: float, lat2: float, lon2: float) -> float:
    """The haversine formula."""
    lat1, lon1, lat2, lon2 = map(math.radians, (lat1, lon1, lat2, lon2))
    half = (
        math.sin((lat2 - lat1) / 2) ** 2
        + math.cos(lat1) * math.cos(lat2) * math.sin((lon2 - lon1) / 2) ** 2
    )
    return 2 * EARTH_RADIUS_METERS * math.asin(min(1.0, math.sqrt(half)))


@given(cells())
def test_the_cell_at_a_cells_centre_is_that_cell(cell: tuple[int, int, int]) -> None:
    zoom, x, y = cell
    assert cell_at(zoom, *cell_centre(zoom, x, y)) == (x, y)


@given(cells())
def test_the_centre_lies_within_the_bounds(cell: tuple[int, int, int]) -> None:
    assert cell_bounds(*cell).contains(*cell_centre(*cell))


@given(cells())
def test_the_cells_in_a_cells_own_box_are_that_cell_alone(cell: tuple[int, int, int]) -> None:
    zoom, x, y = cell
    assert list(cells_in_box(zoom, cell_bounds(*cell))) == [CellRectangle(x, x, y, y)]


def test_the_whole_world_is_one_cell_at_zoom_0() -> None:
    bounds = cell_bounds(0, 0, 0)
    assert bounds.west == -180.0
    assert bounds.east == 180.0
    assert bounds.north == pytest.approx(85.0511287798066)
    assert bounds.south == pytest.approx(-85.0511287798066)
    assert cell_centre(0, 0, 0) == pytest.approx((0.0, 0.0))


def test_columns_go_east_and_rows_go_south() -> None:
    assert cell_at(1, 40.0, -100.0) == (0, 0)
    assert cell_at(1, 40.0, 100.0) == (1, 0)
    assert cell_at(1, -40.0, -100.0) == (0, 1)


def test_a_known_place_lies_in_its_known_cell() -> None:
    # The worked example of the OpenStreetMap wiki's page on slippy map names.
    assert cell_at(18, 35.6590699, 139.7006793) == (232798, 103246)


@pytest.mark.parametrize(
    ("latitude", "longitude", "cell"),
    [(90, -180, (0, 0)), (90, 180, (15, 0)), (-90, -180, (0, 15)), (-90, 180, (15, 15))],
)
def test_beyond_the_projections_edge_the_nearest_cell_is_given(
    latitude: float, longitude: float, cell: tuple[int, int]
) -> None:
    assert cell_at(4, latitude, longitude) == cell


def test_a_cells_edge_shrinks_with_the_cosine_of_latitude() -> None:
    assert cell_edge_meters(0, 0.0) == EQUATOR_METERS
    assert cell_edge_meters(18, 60.0) == pytest.approx(EQUATOR_METERS / 2**18 / 2)


def overlap_degrees(cell: tuple[int, int], box: BoundingBox) -> tuple[float, float]:
    """How far a cell and a box overlap in latitude and longitude; negative if apart."""
    bounds = cell_bounds(BRUTE_ZOOM, *cell)
    spans = [(box.west, box.east)]
    if box.west > box.east:
        spans = [(box.west, 180.0), (-180.0, box.east)]
    return (
        min(bounds.north, box.north) - max(bounds.south, box.south),
        max(min(bounds.east, east) - max(bounds.west, west) for west, east in spans),
    )


@given(latitudes, latitudes, longitudes, longitudes)
def test_a_box_has_the_cells_that_it_overlaps(
    latitude_1: float, latitude_2: float, west: float, east: float
) -> None:
    box = BoundingBox(min(latitude_1, latitude_2), west, max(latitude_1, latitude_2), east)
    found = all_cells(list(cells_in_box(BRUTE_ZOOM, box)))
    overlaps = {cell: min(overlap_degrees(cell, box)) for cell in every_cell(BRUTE_ZOOM)}
    assert {cell for cell, overlap in overlaps.items() if overlap > SLIVER_DEGREES} <= found
    assert found <= {cell for cell, overlap in overlaps.items() if overlap > -SLIVER_DEGREES}


@given(st.integers(1, 15), st.integers(1, 15), st.integers(1, 15), st.integers(1, 15))
def test_sharing_an_edge_is_not_overlapping(x_1: int, x_2: int, y_1: int, y_2: int) -> None:
    assume(x_1 != x_2 and y_1 != y_2)
    (x_from, x_to), (y_from, y_to) = sorted((x_1, x_2)), sorted((y_1, y_2))
    first = cell_bounds(4, x_from, y_from)
    last = cell_bounds(4, x_to - 1, y_to - 1)
    box = BoundingBox(last.south, first.west, first.north, last.east)
    assert list(cells_in_box(4, box)) == [CellRectangle(x_from, x_to - 1, y_from, y_to - 1)]


def test_a_box_across_the_antimeridian_has_both_ends() -> None:
    box = BoundingBox(-10.0, 170.0, 10.0, -170.0)
    assert list(cells_in_box(3, box)) == [CellRectangle(7, 7, 3, 4), CellRectangle(0, 0, 3, 4)]


def test_a_box_across_the_antimeridian_that_meets_itself_has_each_cell_once() -> None:
    box = BoundingBox(-10.0, 10.0, 10.0, 9.0)
    assert list(cells_in_box(3, box)) == [CellRectangle(0, 7, 3, 4)]


@pytest.mark.parametrize(("south", "north"), [(86.0, 90.0), (-90.0, -86.0)])
def test_a_box_beyond_the_projections_edge_has_no_cells(south: float, north: float) -> None:
    assert list(cells_in_box(5, BoundingBox(south, -180.0, north, 180.0))) == []


def test_a_box_of_no_extent_has_the_cell_that_it_lies_in() -> None:
    latitude, longitude = cell_centre(18, 1234, 5678)
    box = BoundingBox(latitude, longitude, latitude, longitude)
    assert list(cells_in_box(18, box)) == [CellRectangle(1234, 1234, 5678, 5678)]


def test_the_world_has_every_cell_once() -> None:
    box = BoundingBox(-90.0, -180.0, 90.0, 180.0)
    assert all_cells(list(cells_in_box(3, box))) == set(every_cell(3))


def sampled_distance_meters(cell: tuple[int, int], latitude: float, longitude: float) -> float:
    """The distance of the nearest of a grid of a cell's points."""
    south, west, north, east = cell_bounds(CIRCLE_ZOOM, *cell)
    steps = [step / SAMPLES for step in range(SAMPLES + 1)]
    return min(
        great_circle_meters(
            latitude, longitude, south + (north - south) * up, west + (east - west) * right
        )
        for up, right in product(steps, repeat=2)
    )


@given(latitudes, longitudes, st.floats(1.0, math.pi * EARTH_RADIUS_METERS))
def test_a_circle_has_the_cells_that_it_overlaps(
    latitude: float, longitude: float, radius: float
) -> None:
    found = all_cells(list(cells_in_circle(CIRCLE_ZOOM, latitude, longitude, radius)))
    spacing = EQUATOR_METERS / 2**CIRCLE_ZOOM / SAMPLES
    for cell in every_cell(CIRCLE_ZOOM):
        distance = sampled_distance_meters(cell, latitude, longitude)
        if distance < radius - 100.0:
            assert cell in found
        if distance > radius + spacing:
            assert cell not in found


def test_a_circle_round_a_pole_has_whole_rows() -> None:
    found = all_cells(list(cells_in_circle(4, 90.0, 12.0, 700_000.0)))
    assert found == {(x, 0) for x in range(16)}


def test_a_circle_across_the_antimeridian_has_both_sides() -> None:
    found = all_cells(list(cells_in_circle(6, 1.0, 179.99, 10_000.0)))
    assert {x for x, _ in found} == {63, 0}


def test_a_circle_as_large_as_the_earth_has_every_cell() -> None:
    half = math.pi * EARTH_RADIUS_METERS
    assert all_cells(list(cells_in_circle(3, 10.0, 20.0, half))) == set(every_cell(3))


def test_a_circle_beyond_the_projections_edge_has_no_cells() -> None:
    assert MAX_LATITUDE < 86.0
    assert list(cells_in_circle(10, 89.0, 0.0, 1_000.0)) == []


@given(cells(), st.floats(0.0, 0.4))
def test_a_small_circle_at_a_cells_centre_is_that_cell(
    cell: tuple[int, int, int], part: float
) -> None:
    zoom, x, y = cell
    assume(zoom >= 4)
    latitude, longitude = cell_centre(zoom, x, y)
    # A cell's rows differ in length; 0.4 of the edge at the centre stays within.
    radius = max(cell_edge_meters(zoom, latitude) * part, 1e-3)
    assert all_cells(list(cells_in_circle(zoom, latitude, longitude, radius))) == {(x, y)}


@pytest.mark.parametrize(
    ("longitude", "within"), [(179.0, True), (-179.0, True), (170.0, True), (0.0, False)]
)
def test_a_box_across_the_antimeridian_contains_both_sides(longitude: float, within: bool) -> None:
    assert BoundingBox(0.0, 170.0, 10.0, -170.0).contains(5.0, longitude) is within


@given(cells())
def test_a_cell_is_one_of_its_blocks_cells(cell: tuple[int, int, int]) -> None:
    zoom, x, y = cell
    block = block_of(*cell)
    x_from, x_to, y_from, y_to = cells_of(block)
    assert block.zoom == zoom
    assert x_from <= x <= x_to
    assert y_from <= y <= y_to


def test_a_block_has_32_columns_and_rows() -> None:
    assert BLOCK_CELLS == 32
    assert cells_of(BlockKey(18, 1, 2)) == CellRectangle(32, 63, 64, 95)


@given(rectangles)
def test_blocks_divide_a_rectangle_among_them(rectangle: CellRectangle) -> None:
    blocks = blocks_in(BLOCK_ZOOM, [rectangle])
    parts = [part for parts in blocks.values() for part in parts]
    assert all_cells(parts) == all_cells([rectangle])
    for block, (part,) in blocks.items():
        assert bounds_of([part, cells_of(block)]) == cells_of(block)


def test_a_block_has_its_part_of_every_rectangle() -> None:
    first, second = CellRectangle(0, 40, 0, 0), CellRectangle(3, 3, 5, 5)
    assert blocks_in(18, [first, second]) == {
        BlockKey(18, 0, 0): [CellRectangle(0, 31, 0, 0), second],
        BlockKey(18, 1, 0): [CellRectangle(32, 40, 0, 0)],
    }


@given(st.lists(rectangles, min_size=1))
def test_bounds_contain_each_rectangle_and_touch_all_edges(given: list[CellRectangle]) -> None:
    bounds = bounds_of(given)
    for axis, furthest in enumerate((min, max, min, max)):
        assert bounds[axis] == furthest(rectangle[axis] for rectangle in given)
