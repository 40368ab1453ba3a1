"""DescribeCoverage."""

import random
from collections import Counter
from collections.abc import Iterator
from itertools import product
from typing import Any

import grpc
import psycopg
import pytest

from tests.tiles import (
    ONBOARD,
    Block,
    box_region,
    bulk_insert,
    cell_region,
    circle_region,
    random_flight,
    store_row,
    tile,
    tile_key,
)
from tilecache.client import TileCacheClient
from tilecache.errors import CallError
from tilecache.mercator import BoundingBox, cells_in_box, cells_in_circle
from tilecache.v1.tile_metadata_store_pb2 import (
    CoverageSummary,
    DescribeCoverageRequest,
    DescribeCoverageResponse,
    FreshnessLabel,
    Region,
)

Cell = tuple[int, int]
WORDS = ["fresh", "downgraded", "stale_warn", "stale_reject", "rejected"]


def messages(client: TileCacheClient, zoom: int, region: Region) -> list[DescribeCoverageResponse]:
    request = DescribeCoverageRequest(zoom=zoom, region=region)
    answers: Iterator[DescribeCoverageResponse] = client.store.DescribeCoverage(request, timeout=60)
    return list(answers)


def describe(
    client: TileCacheClient, zoom: int, region: Region
) -> tuple[CoverageSummary, list[Cell]]:
    """The summary and the missing cells; the rectangles must be disjoint."""
    answers = messages(client, zoom, region)
    assert [answer.HasField("summary") for answer in answers] == [True] + [False] * (
        len(answers) - 1
    )
    missing = [
        cell
        for answer in answers
        for part in answer.missing
        for cell in product(range(part.x_from, part.x_to + 1), range(part.y_from, part.y_to + 1))
    ]
    assert len(missing) == len(set(missing))
    return answers[0].summary, sorted(missing)


def label_counts(summary: CoverageSummary) -> dict[str, int]:
    return {
        FreshnessLabel.Name(item.label).removeprefix("FRESHNESS_LABEL_").lower(): item.count
        for item in summary.labels
    }


def test_coverage_equals_a_simple_count(
    client: TileCacheClient, block: Block, sql: psycopg.Connection[Any]
) -> None:
    chance = random.Random(5)
    best: dict[Cell, str] = {}
    for column, row in product(range(20), range(12)):
        for _ in range(chance.choice([0, 0, 1, 3])):
            word = chance.choice(WORDS)
            key = block.key(column, row, ONBOARD, random_flight())
            store_row(sql, key, freshness_status=word)
            best[key.x, key.y] = min(best.get((key.x, key.y), word), word, key=WORDS.index)
    region = cell_region(block.x, block.x + 19, block.y, block.y + 11)
    summary, missing = describe(client, block.zoom, region)
    every = set(product(range(block.x, block.x + 20), range(block.y, block.y + 12)))
    assert missing == sorted(every - set(best))
    assert (summary.cell_count, summary.covered_count, summary.missing_count) == (
        *(240, len(best), 240 - len(best)),
    )
    assert label_counts(summary) == Counter(best.values())


def test_a_region_without_tiles_is_one_missing_rectangle(
    client: TileCacheClient, block: Block
) -> None:
    (answer,) = messages(client, block.zoom, block.region)
    assert (answer.summary.cell_count, answer.summary.missing_count) == (10_000, 10_000)
    assert list(answer.summary.labels) == []
    assert list(answer.missing) == [block.region.cell_range]


def test_a_covered_region_has_no_missing_cells(client: TileCacheClient, block: Block) -> None:
    bulk_insert(client, [tile(key) for key in block.keys(10, 10)])
    region = cell_region(block.x, block.x + 9, block.y, block.y + 9)
    summary, missing = describe(client, block.zoom, region)
    assert (summary.cell_count, summary.covered_count, summary.missing_count) == (100, 100, 0)
    assert label_counts(summary) == {"fresh": 100}
    assert missing == []


def test_tiles_outside_the_region_do_not_count(client: TileCacheClient, block: Block) -> None:
    bulk_insert(client, [tile(key) for key in block.keys(10)])
    region = cell_region(block.x + 3, block.x + 4, block.y, block.y + 1)
    summary, missing = describe(client, block.zoom, region)
    assert (summary.cell_count, summary.covered_count) == (4, 2)
    assert missing == [(block.x + 3, block.y + 1), (block.x + 4, block.y + 1)]


@pytest.mark.parametrize(
    ("region", "rectangles"),
    [
        (box_region(-20, 170, 20, -170), cells_in_box(7, BoundingBox(-20, 170, 20, -170))),
        (circle_region(60, 179.9, 900_000), cells_in_circle(7, 60, 179.9, 900_000)),
    ],
    ids=["box", "circle"],
)
def test_a_region_across_the_antimeridian_includes_both_sides(
    client: TileCacheClient, region: Region, rectangles: Any
) -> None:
    cells = sorted(
        cell
        for part in rectangles
        for cell in product(range(part.x_from, part.x_to + 1), range(part.y_from, part.y_to + 1))
    )
    covered = cells[:: len(cells) // 10]
    bulk_insert(client, [tile(tile_key(7, x, y)) for x, y in covered])
    summary, missing = describe(client, 7, region)
    assert summary.cell_count == len(cells)
    assert missing == sorted(set(cells) - set(covered))
    assert {x for x, _ in missing} >= {0, 127}


def test_a_region_outside_the_projection_has_no_cells(client: TileCacheClient) -> None:
    (answer,) = messages(client, 10, box_region(86, -180, 90, 180))
    assert answer.HasField("summary")
    assert answer.summary == CoverageSummary()


def test_messages_of_missing_cells_are_below_the_default_size_limit(
    client: TileCacheClient, block: Block, sql: psycopg.Connection[Any]
) -> None:
    side, y = 330, block.y + 1_000  # wider than a block, so below those of the other tests
    sql.execute(
        """INSERT INTO tiles (tile_uuid, location_hash, zoom, x, y, source, latitude, longitude,
                              tile_size_meters, tile_size_pixels, file_path, captured_at)
           SELECT gen_random_uuid(), gen_random_uuid(), 18, x, y, 'googlemaps', 0, 0, 1, 256,
                  'a.jpg', now()
           FROM generate_series(%(x)s, %(x)s + %(side)s - 1) AS x,
                generate_series(%(y)s, %(y)s + %(side)s - 1) AS y
           WHERE (x + y) %% 2 = 0""",
        {"x": block.x, "y": y, "side": side},
    )
    region = cell_region(block.x, block.x + side - 1, y, y + side - 1)
    answers = messages(client, 18, region)
    assert len(answers) > 1
    assert all(answer.ByteSize() < 4 * 1024 * 1024 for answer in answers)
    summary, missing = describe(client, 18, region)
    assert summary.covered_count == summary.missing_count == side * side / 2
    assert all((x + y) % 2 for x, y in missing)
    assert len(missing) == summary.missing_count


def test_a_region_of_too_many_cells_is_refused(client: TileCacheClient) -> None:
    with pytest.raises(CallError) as caught:
        messages(client, 22, box_region(-90, -180, 90, 180))
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.reason == "LIMIT_EXCEEDED"
    assert [violation.field for violation in caught.value.violations] == ["region"]
