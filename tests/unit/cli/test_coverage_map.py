"""The map of a region shows exactly the region's cells."""

from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from tilecache.mercator import (
    BoundingBox,
    CellRectangle,
    cells_in_box,
    cells_in_circle,
    count_cells,
)
from tilecache_daemon.cli.coverage_map import (
    DOWNGRADED,
    FRESH,
    KIND_COLOURS,
    MISSING,
    STALE,
    CoverageMap,
)
from tilecache_daemon.models import FreshnessLabel


def draw(coverage_map: CoverageMap) -> Image.Image:
    png = BytesIO()
    coverage_map.save(png, "A title")
    return Image.open(png).convert("RGB")


def count_pixels(image: Image.Image, kind: int) -> int:
    counts = {colour: count for count, colour in image.getcolors(image.width * image.height)}
    return counts.get(tuple(bytes.fromhex(KIND_COLOURS[kind].removeprefix("#"))), 0)


def test_every_label_has_a_kind() -> None:
    for label in FreshnessLabel:
        coverage_map = CoverageMap(0, [CellRectangle(0, 0, 0, 0)])
        coverage_map.mark(0, 0, label.value)
        assert coverage_map.count(MISSING) == 0


def test_cells_are_missing_until_they_are_marked() -> None:
    coverage_map = CoverageMap(3, [CellRectangle(2, 3, 4, 5)])
    coverage_map.mark(2, 4, "fresh")
    coverage_map.mark(3, 5, "rejected")

    kinds = (FRESH, DOWNGRADED, STALE, MISSING)
    assert [coverage_map.count(kind) for kind in kinds] == [1, 0, 1, 2]


def test_a_cell_outside_a_circle_is_ignored() -> None:
    rows = list(cells_in_circle(10, 50.0, 30.0, 200_000))
    coverage_map = CoverageMap(10, rows)
    coverage_map.mark(min(row.x_from for row in rows), rows[0].y_from, "fresh")

    assert coverage_map.count(FRESH) == 0
    assert coverage_map.count(MISSING) == count_cells(rows)


@pytest.mark.parametrize(
    "box",
    [
        BoundingBox(-30, 160, 10, -150),
        BoundingBox(-30, 20, 10, 70),
        BoundingBox(-85, -180, 85, 180),
    ],
)
def test_bands_contain_every_cell_once_even_across_the_antimeridian(box: BoundingBox) -> None:
    region = list(cells_in_box(7, box))
    bands = list(CoverageMap(7, region).bands(max_cells=100))

    cells = [
        (x, y)
        for band in bands
        for x in range(band.x_from, band.x_to + 1)
        for y in range(band.y_from, band.y_to + 1)
    ]
    assert len(cells) == len(set(cells)) == count_cells(region)


def test_the_map_across_the_antimeridian_is_no_wider_than_its_region() -> None:
    region = list(cells_in_box(7, BoundingBox(-30, 160, 10, -150)))

    assert len(region) == 2
    assert CoverageMap(7, region).shape == (16, 19)


def test_each_kind_has_its_colour() -> None:
    coverage_map = CoverageMap(1, [CellRectangle(0, 1, 0, 1)])
    for x, y, label in ((0, 0, "fresh"), (1, 0, "downgraded"), (0, 1, "stale_warn")):
        coverage_map.mark(x, y, label)
    image = draw(coverage_map)

    sizes = [count_pixels(image, kind) for kind in (FRESH, DOWNGRADED, STALE, MISSING)]
    assert min(sizes) > 0.9 * max(sizes) > 10_000


def test_one_missing_cell_of_a_million_is_visible() -> None:
    coverage_map = CoverageMap(10, [CellRectangle(0, 999, 0, 999)])
    for x in range(1000):
        for y in range(1000):
            if (x, y) != (517, 333):
                coverage_map.mark(x, y, "fresh")
    image = draw(coverage_map)
    coverage_map.mark(517, 333, "fresh")

    assert count_pixels(image, MISSING) > count_pixels(draw(coverage_map), MISSING)


def test_a_map_that_cannot_be_written_is_an_error() -> None:
    with pytest.raises(OSError, match="nowhere"):
        CoverageMap(0, [CellRectangle(0, 0, 0, 0)]).save(Path("/nowhere/map.png"), "A title")
