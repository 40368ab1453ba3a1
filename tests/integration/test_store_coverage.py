"""DescribeCoverage."""

import random
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from itertools import product
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from tests.admin import ACTIVE_CONFLICT, STABLE_REAR, reevaluate, set_sector
from tests.clocked_daemon import ClockedDaemon
from tests.tiles import (
    ONBOARD,
    YESTERDAY,
    Block,
    box_region,
    bulk_insert,
    cell_region,
    circle_region,
    random_flight,
    store_row,
    tile,
    tile_key,
    timestamp,
    union_region,
)
from tilecache.client import TileCacheClient
from tilecache.errors import CallError
from tilecache.mercator import BoundingBox, cell_bounds, cells_in_box, cells_in_circle
from tilecache.v1.tile_metadata_store_pb2 import (
    TILE_SELECTION_BEST_PER_CELL,
    CoverageSummary,
    DescribeCoverageRequest,
    DescribeCoverageResponse,
    FreshnessLabel,
    QueryTilesRequest,
    Region,
)
from tilecache_daemon.freshness_policy import add_months

Cell = tuple[int, int]
EARLIER = YESTERDAY - timedelta(days=3)
STALE = {"stale_reject", "rejected"}
WORDS = ["fresh", "downgraded", "stale_warn", "stale_reject", "rejected"]


def messages(
    client: TileCacheClient, zoom: int, region: Region, **request_: Any
) -> list[DescribeCoverageResponse]:
    request = DescribeCoverageRequest(zoom=zoom, region=region, **request_)
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


def stale_cells(client: TileCacheClient, zoom: int, region: Region) -> set[Cell]:
    """The cells that are listed as stale."""
    return {
        cell
        for answer in messages(client, zoom, region)
        for part in answer.stale
        for cell in product(range(part.x_from, part.x_to + 1), range(part.y_from, part.y_to + 1))
    }


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
    stale = {cell for cell, word in best.items() if word in STALE}
    assert (summary.usable_count, summary.stale_count) == (len(best) - len(stale), len(stale))
    assert stale_cells(client, block.zoom, region) == stale


def test_usable_is_what_a_query_returns(
    client: TileCacheClient, block: Block, sql: psycopg.Connection[Any]
) -> None:
    chance = random.Random(6)
    for column, row, _ in product(range(9), range(9), range(3)):
        if chance.random() < 0.4:
            store_row(
                sql,
                block.key(column, row, ONBOARD, random_flight()),
                freshness_status=chance.choice(WORDS),
                captured_at=YESTERDAY - timedelta(hours=chance.randrange(1_000)),
                disk_bytes=chance.randrange(1_000),
            )
    region = cell_region(block.x, block.x + 8, block.y, block.y + 8)

    summary, _ = describe(client, block.zoom, region)

    request = QueryTilesRequest(
        zoom=block.zoom, region=region, selection=TILE_SELECTION_BEST_PER_CELL
    )
    best = [
        found for answer in client.store.QueryTiles(request, timeout=60) for found in answer.tiles
    ]
    captures = sorted(found.captured_at.ToNanoseconds() for found in best)
    assert summary.usable_count == len(best)
    assert summary.usable_bytes == sum(found.disk_bytes for found in best)
    assert [
        moment.ToNanoseconds()
        for moment in (
            summary.oldest_captured_at,
            summary.median_captured_at,
            summary.newest_captured_at,
        )
    ] == [captures[0], captures[(len(captures) - 1) // 2], captures[-1]]


def test_the_bytes_to_fetch_are_estimated_by_the_tiles_of_the_zoom(
    admin: TileCacheClient, sql: psycopg.Connection[Any]
) -> None:
    region = cell_region(0, 3, 0, 3)
    unknown, _ = describe(admin, 7, region)
    assert not unknown.HasField("estimated_fetch_bytes")

    bulk_insert(admin, [tile(tile_key(9, x, 0), disk_bytes=1_000) for x in range(3)])
    by_another_zoom, _ = describe(admin, 7, region)
    bulk_insert(admin, [tile(tile_key(7, x, 0), disk_bytes=100 + 100 * x) for x in range(3)])
    store_row(sql, tile_key(7, 3, 0), freshness_status="rejected", disk_bytes=200)
    by_this_zoom, _ = describe(admin, 7, region)

    assert by_another_zoom.estimated_fetch_bytes == 16 * 1_000
    assert (by_this_zoom.usable_count, by_this_zoom.stale_count) == (3, 1)
    assert by_this_zoom.estimated_fetch_bytes == 13 * 200


def test_several_zooms_have_their_numbers_and_those_of_all(
    client: TileCacheClient, block: Block
) -> None:
    bulk_insert(
        client,
        [
            *(tile(key, disk_bytes=10, captured_at=YESTERDAY) for key in block.keys(3)),
            tile(tile_key(17, block.x // 2, block.y // 2), disk_bytes=5, captured_at=EARLIER),
        ],
    )
    bounds = cell_bounds(17, block.x // 2, block.y // 2)
    request = DescribeCoverageRequest(zooms=[18, 17, 18], region=box_region(*bounds))

    answers = list(client.store.DescribeCoverage(request, timeout=60))

    summaries = [answer.summary for answer in answers if answer.HasField("summary")]
    assert [(each.zoom, each.cell_count, each.usable_count) for each in summaries] == [
        (17, 1, 1),
        (18, 4, 2),
    ]
    total = answers[-1].total
    assert not total.HasField("zoom")
    assert (total.cell_count, total.usable_count, total.missing_count) == (5, 3, 2)
    assert (total.usable_bytes, label_counts(total)) == (25, {"fresh": 3})
    assert total.estimated_fetch_bytes == sum(each.estimated_fetch_bytes for each in summaries)
    assert total.oldest_captured_at.ToDatetime(timezone.utc) == EARLIER
    assert total.median_captured_at == total.newest_captured_at == timestamp(YESTERDAY)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"zoom": 3, "zooms": [4]}, "zoom"),
        ({"zooms": [4, 23]}, "zooms[1]"),
        ({"zooms": [4, 5], "region": cell_region(0, 1, 0, 1)}, "zooms"),
        ({"zooms": [4, 5], "region": union_region(cell_region(0, 1, 0, 1))}, "zooms"),
        ({"zoom": 4, "at": Timestamp(seconds=-(10**12))}, "at"),
    ],
)
def test_an_invalid_request_names_its_field(
    client: TileCacheClient, request_: dict[str, Any], field: str
) -> None:
    given = {"region": box_region(0, 0, 1, 1)} | request_
    with pytest.raises(CallError) as refusal:
        list(client.store.DescribeCoverage(DescribeCoverageRequest(**given), timeout=60))
    assert [violation.field for violation in refusal.value.violations] == [field]


def test_the_cells_of_all_zooms_are_limited_together(client: TileCacheClient) -> None:
    request = DescribeCoverageRequest(zooms=[10, 11], region=box_region(-90, -180, 90, 180))
    with pytest.raises(CallError) as refusal:
        list(client.store.DescribeCoverage(request, timeout=60))
    assert refusal.value.reason == "LIMIT_EXCEEDED"


def test_coverage_at_another_time_is_what_it_will_be_then(
    database: str, short_directory: Path, block: Block
) -> None:
    now = datetime(2026, 11, 25, 12, tzinfo=timezone.utc)
    later = datetime(2027, 2, 28, 23, 59, tzinfo=timezone.utc)
    with ClockedDaemon(short_directory, now, dsn=database) as daemon:
        admin = daemon.admin_client
        bulk_insert(
            admin,
            [
                tile(key, captured_at=add_months(now, -(index % 14)))
                for index, key in enumerate(block.keys(40, 2))
            ],
        )
        first, last = (cell_bounds(18, block.x + column, block.y) for column in (10, 30))
        set_sector(admin, "front", ACTIVE_CONFLICT, (-90, first.west, 90, last.west))
        set_sector(admin, "rear", STABLE_REAR, (-90, last.west, 90, last.west + 0.02))
        with psycopg.connect(database, autocommit=True) as sql:
            for column, word in enumerate(("stale_warn", "stale_reject")):
                store_row(sql, block.key(column, 3), freshness_status=word)
        region = cell_region(block.x, block.x + 41, block.y, block.y + 3)
        foretold = messages(admin, 18, region, at=timestamp(later))

        assert foretold != messages(admin, 18, region)
        daemon.set_clock(later)
        reevaluate(admin)
        then = messages(admin, 18, region)

    assert then == foretold
    labels = label_counts(then[0].summary)
    assert set(labels) == {"fresh", "downgraded", "rejected", "stale_warn", "stale_reject"}


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
    assert answer.summary == CoverageSummary(zoom=10, estimated_fetch_bytes=0)


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
