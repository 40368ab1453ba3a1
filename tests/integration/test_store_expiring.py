"""ListExpiring: which tiles get a worse label, and how many by day and sector."""

import random
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.duration_pb2 import Duration

from tests.admin import ACTIVE_CONFLICT, STABLE_REAR, explain, set_sector
from tests.clocked_daemon import ClockedDaemon
from tests.tiles import (
    TIMEOUT_S,
    Block,
    box_region,
    bulk_insert,
    cell_region,
    corridor_region,
    store_row,
    tile,
    tile_key,
    timestamp,
)
from tilecache.client import TileCacheClient
from tilecache.errors import CallError
from tilecache.mercator import cell_bounds, cell_centre
from tilecache.v1.tile_identity_pb2 import TileKey
from tilecache.v1.tile_metadata_store_pb2 import (
    ExpiringTile,
    ExpirySummary,
    FreshnessLabel,
    ListExpiringRequest,
)
from tilecache_daemon.freshness_policy import add_months
from tilecache_daemon.service.expiry import BATCH_TILES

NOW = datetime(2026, 11, 25, 12, tzinfo=timezone.utc)


def list_expiring(
    client: TileCacheClient, days: float, **request: Any
) -> tuple[list[ExpiringTile], ExpirySummary]:
    within = Duration()
    within.FromTimedelta(timedelta(days=days))
    answers = list(
        client.store.ListExpiring(ListExpiringRequest(within=within, **request), timeout=TIMEOUT_S)
    )
    assert [answer.HasField("summary") for answer in answers] == [False] * (len(answers) - 1) + [
        True
    ]
    return [each for answer in answers for each in answer.tiles], answers[-1].summary


@pytest.fixture
def daemon(database: str, short_directory: Path) -> Iterator[ClockedDaemon]:
    with ClockedDaemon(short_directory, NOW, dsn=database) as process:
        yield process


@pytest.fixture
def keys(daemon: ClockedDaemon, block: Block) -> list[TileKey]:
    """Tiles of many ages, in two sectors that overlap and in none."""
    chance = random.Random(7)
    keys = list(block.keys(60, 4))
    bulk_insert(
        daemon.client,
        [
            tile(
                key,
                captured_at=NOW
                - timedelta(days=chance.randrange(0, 500), hours=chance.randrange(24)),
                disk_bytes=10,
            )
            for key in keys
        ],
    )
    edges = [cell_bounds(18, block.x + column, block.y).west for column in (10, 30, 50)]
    set_sector(daemon.admin_client, "front", ACTIVE_CONFLICT, (-90, edges[0], 90, edges[1]))
    set_sector(daemon.admin_client, "a rear", STABLE_REAR, (-90, edges[0] + 0.005, 90, edges[2]))
    set_sector(daemon.admin_client, "rear", STABLE_REAR, (-90, edges[1], 90, edges[2]))
    return keys


@pytest.mark.parametrize("days", [0.5, 30, 365])
def test_it_is_what_each_tiles_explanation_says(
    daemon: ClockedDaemon, keys: list[TileKey], days: float
) -> None:
    tiles, summary = list_expiring(daemon.client, days)

    expected = {}
    for key in keys:
        found = explain(daemon.admin_client, key)
        if not found.HasField("next_change_at"):
            continue
        when = found.next_change_at.ToDatetime(timezone.utc)
        if when <= NOW + timedelta(days=days):
            expected[key.x, key.y] = (when, found.next_label, found.sector.name)
    assert {
        (each.key.x, each.key.y): (
            each.expires_at.ToDatetime(timezone.utc),
            each.next_label,
            each.sector,
        )
        for each in tiles
    } == expected
    captures = [each.captured_at.ToNanoseconds() for each in tiles]
    assert captures == sorted(captures)
    days_ = Counter((when.date(), sector, label) for when, label, sector in expected.values())
    assert [
        (count.day.ToDatetime().date(), count.sector, count.next_label) for count in summary.counts
    ] == sorted(days_, key=lambda entry: (entry[0], entry[1], FreshnessLabel.Name(entry[2])))
    assert [count.tile_count for count in summary.counts] == [
        days_[count.day.ToDatetime().date(), count.sector, count.next_label]
        for count in summary.counts
    ]
    assert (summary.tile_count, summary.used_bytes) == (len(expected), 10 * len(expected))
    assert summary.starts_at == timestamp(NOW)
    assert summary.clock_trusted


def test_it_becomes_true(daemon: ClockedDaemon, keys: list[TileKey]) -> None:
    tiles, _ = list_expiring(daemon.client, 40)
    assert tiles
    last = max(tiles, key=lambda each: each.expires_at.ToNanoseconds())

    daemon.set_clock(last.expires_at.ToDatetime(timezone.utc))

    for each in tiles:
        assert explain(daemon.admin_client, each.key).current_label == each.next_label


def test_a_region_and_zooms_restrict_it(
    daemon: ClockedDaemon, keys: list[TileKey], block: Block
) -> None:
    bulk_insert(
        daemon.client,
        [tile(tile_key(17, keys[20].x // 2, keys[20].y // 2), captured_at=add_months(NOW, -5))],
    )
    everything, _ = list_expiring(daemon.client, 365)
    assert {each.key.zoom for each in everything} == {17, 18}

    for region, zooms in (
        (cell_region(block.x + 15, block.x + 25, block.y, block.y + 1), [18]),
        (box_region(*cell_bounds(17, keys[20].x // 2, keys[20].y // 2)), []),
        (
            corridor_region(
                [cell_centre(18, block.x, block.y), cell_centre(18, block.x + 25, block.y)], 5
            ),
            [],
        ),
        (box_region(-90, -180, 90, 180), [17]),
    ):
        some, summary = list_expiring(daemon.client, 365, region=region, zooms=zooms)
        assert 0 < len(some) < len(everything)
        assert summary.tile_count == len(some)
        assert {each.tile_uuid for each in some} < {each.tile_uuid for each in everything}
        assert {each.key.zoom for each in some} <= set(zooms or [17, 18])


def test_the_counts_alone_are_the_same(daemon: ClockedDaemon, keys: list[TileKey]) -> None:
    _, summary = list_expiring(daemon.client, 365)
    tiles, counts = list_expiring(daemon.client, 365, omit_tiles=True)
    assert tiles == []
    assert counts == summary


def test_a_label_that_does_not_get_worse_is_not_listed(
    daemon: ClockedDaemon, database: str, block: Block
) -> None:
    set_sector(daemon.admin_client, "rear", STABLE_REAR, (-90, -180, 90, 180))
    due = add_months(NOW, -12) + timedelta(days=1)
    with psycopg.connect(database, autocommit=True) as sql:
        for column, word in enumerate(("fresh", "downgraded", "rejected", "stale_warn")):
            store_row(sql, block.key(column), captured_at=due, freshness_status=word)

    tiles, _ = list_expiring(daemon.client, 2)
    assert [each.key.x for each in tiles] == [block.x]


def test_many_tiles_of_one_capture_time_are_listed_once(
    daemon: ClockedDaemon, database: str, block: Block
) -> None:
    set_sector(daemon.admin_client, "rear", STABLE_REAR, (-90, -180, 90, 180))
    due = add_months(NOW, -12) + timedelta(days=1)
    keys = list(block.keys(100, 45))
    assert len(keys) > 2 * BATCH_TILES
    bulk_insert(daemon.client, [tile(key, captured_at=due) for key in keys])

    tiles, summary = list_expiring(daemon.client, 30)

    assert len({each.tile_uuid for each in tiles}) == len(tiles) == len(keys)
    (count,) = summary.counts
    assert (count.tile_count, count.sector) == (len(keys), "rear")


def test_without_sectors_nothing_expires(daemon: ClockedDaemon, block: Block) -> None:
    bulk_insert(daemon.client, [tile(block.key(), captured_at=add_months(NOW, -12))])
    assert list_expiring(daemon.client, 36_500) == ([], list_expiring(daemon.client, 1)[1])


@pytest.mark.parametrize(
    ("days", "request_", "field"),
    [
        (0, {}, "within"),
        (-1, {}, "within"),
        (36_501, {}, "within"),
        (1, {"zooms": [23]}, "zooms[0]"),
        (1, {"region": cell_region(0, 1, 0, 1)}, "zooms"),
        (1, {"region": box_region(5, 0, 4, 1)}, "region.bounding_box.south"),
    ],
)
def test_an_invalid_request_is_refused(
    client: TileCacheClient, days: float, request_: dict[str, Any], field: str
) -> None:
    with pytest.raises(CallError) as refusal:
        list_expiring(client, days, **request_)
    assert refusal.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in refusal.value.violations] == [field]
