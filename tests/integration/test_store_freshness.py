"""Labels of new and of ageing tiles, with sectors and rules set by SQL."""

import random
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import grpc
import psycopg
import pytest

from tests.daemon_process import DaemonProcess
from tests.tiles import Block, bulk_insert, by_key, insert, store_row, tile, tile_key, tile_uuid
from tests.waiting import eventually
from tilecache.client import TileCacheClient
from tilecache.errors import CallError
from tilecache.mercator import BoundingBox, cell_bounds, cell_centre
from tilecache.v1.tile_identity_pb2 import TileKey
from tilecache.v1.tile_metadata_store_pb2 import (
    FRESHNESS_LABEL_DOWNGRADED,
    FRESHNESS_LABEL_FRESH,
    INSERT_OUTCOME_ALREADY_PRESENT,
    INSERT_OUTCOME_DOWNGRADED,
    INSERT_OUTCOME_INSERTED,
    INSERT_OUTCOME_REPLACED,
    ON_CONFLICT_REPLACE_IF_NEWER,
    LookupTilesRequest,
)
from tilecache_daemon.freshness_policy import (
    FreshnessAction,
    FreshnessPolicy,
    FreshnessRule,
    Sector,
    SectorClassification,
    add_months,
)

NOW = datetime.now(timezone.utc)
DAY = timedelta(days=1)
HALF_A_YEAR_AGO = add_months(NOW, -6)
A_YEAR_AGO = add_months(NOW, -12)


def add_sector(sql: psycopg.Connection[Any], classification: str, box: BoundingBox | None) -> None:
    sql.execute(
        """INSERT INTO sector_classifications (name, classification, south, west, north, east)
           VALUES (gen_random_uuid()::text, %s, %s, %s, %s, %s)""",
        [classification, *(box or (None, None, None, None))],
    )


def box_round(*keys: TileKey) -> BoundingBox:
    """The box of the centres of some cells; it contains no centre of their neighbours."""
    centres = [cell_centre(key.zoom, key.x, key.y) for key in keys]
    latitudes, longitudes = zip(*centres, strict=True)
    return BoundingBox(min(latitudes), min(longitudes), max(latitudes), max(longitudes))


def labels(client: TileCacheClient, keys: list[TileKey]) -> list[int]:
    request = LookupTilesRequest(tiles=map(by_key, keys))
    results = client.store.LookupTiles(request, timeout=60).results
    return [result.tile.freshness_label for result in results]


def words(sql: psycopg.Connection[Any]) -> dict[str, str]:
    return dict(sql.execute("SELECT tile_uuid::text, freshness_status FROM tiles").fetchall())


def test_a_tile_that_a_rule_rejects_is_refused_and_not_stored(
    client: TileCacheClient, block: Block, sql: psycopg.Connection[Any]
) -> None:
    key = block.key()
    add_sector(sql, "active_conflict", box_round(key))
    with pytest.raises(CallError) as caught:
        insert(client, tile(key, captured_at=HALF_A_YEAR_AGO - DAY))
    assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION
    assert caught.value.reason == "TILE_TOO_OLD"
    assert caught.value.facts["classification"] == "active_conflict"
    assert caught.value.facts["max_age_months"] == "6"
    assert labels(client, [key]) == [0]
    assert tile_uuid(key) not in words(sql)


def test_a_refused_tile_does_not_affect_the_rest_of_its_batch(
    client: TileCacheClient, block: Block, sql: psycopg.Connection[Any]
) -> None:
    keys = list(block.keys(3))
    add_sector(sql, "active_conflict", box_round(*keys))
    old, new = HALF_A_YEAR_AGO - DAY, HALF_A_YEAR_AGO + 3 * DAY
    batch = [tile(key, captured_at=at) for key, at in zip(keys, (new, old, new), strict=True)]
    (answer,) = bulk_insert(client, batch)
    assert answer.inserted_count == 2
    (refused,) = answer.refused
    assert (refused.index, refused.reason) == (1, "TILE_TOO_OLD")
    assert refused.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
    assert labels(client, keys) == [FRESHNESS_LABEL_FRESH, 0, FRESHNESS_LABEL_FRESH]


def test_a_tile_that_a_rule_downgrades_is_stored_as_downgraded(
    client: TileCacheClient, block: Block, sql: psycopg.Connection[Any]
) -> None:
    old, new, one = block.keys(3)
    add_sector(sql, "stable_rear", box_round(old, new, one))
    (answer,) = bulk_insert(
        client,
        [tile(old, captured_at=A_YEAR_AGO - DAY), tile(new, captured_at=A_YEAR_AGO + 3 * DAY)],
    )
    assert (answer.downgraded_count, answer.inserted_count) == (1, 1)
    single = insert(client, tile(one, captured_at=A_YEAR_AGO - DAY))
    assert single.outcome == INSERT_OUTCOME_DOWNGRADED
    assert single.tile.freshness_label == FRESHNESS_LABEL_DOWNGRADED
    assert labels(client, [old, new]) == [FRESHNESS_LABEL_DOWNGRADED, FRESHNESS_LABEL_FRESH]


def test_the_strictest_classification_applies(
    client: TileCacheClient, block: Block, sql: psycopg.Connection[Any]
) -> None:
    both, rear = block.keys(2)
    add_sector(sql, "stable_rear", box_round(both, rear))
    add_sector(sql, "active_conflict", box_round(both))
    (answer,) = bulk_insert(
        client, [tile(key, captured_at=HALF_A_YEAR_AGO - DAY) for key in (both, rear)]
    )
    assert answer.inserted_count == 1
    assert [refused.index for refused in answer.refused] == [0]


def test_a_sector_contains_the_tiles_whose_centre_is_in_its_box(
    client: TileCacheClient, block: Block, sql: psycopg.Connection[Any]
) -> None:
    key = block.key()
    bounds = cell_bounds(key.zoom, key.x, key.y)
    _, longitude = cell_centre(key.zoom, key.x, key.y)
    add_sector(sql, "active_conflict", bounds._replace(west=(longitude + bounds.east) / 2))
    assert insert(client, tile(key, captured_at=NOW - 5000 * DAY)).outcome == (
        INSERT_OUTCOME_INSERTED
    )


def test_a_sector_may_cross_the_antimeridian(
    client: TileCacheClient, sql: psycopg.Connection[Any]
) -> None:
    last = (1 << 18) - 1
    east, west, outside = (tile_key(18, x, 60_000) for x in (0, last, last // 2))
    latitude, longitude = cell_centre(18, 0, 60_000)
    box = BoundingBox(latitude - 1e-4, -longitude, latitude + 1e-4, longitude)
    assert box.west > box.east
    add_sector(sql, "active_conflict", box)
    keys = [east, west, outside]
    (answer,) = bulk_insert(client, [tile(key, captured_at=HALF_A_YEAR_AGO - DAY) for key in keys])
    assert [refused.index for refused in answer.refused] == [0, 1]
    assert labels(client, [outside]) == [FRESHNESS_LABEL_FRESH]


def test_outside_all_sectors_nothing_expires(
    client: TileCacheClient, block: Block, sql: psycopg.Connection[Any]
) -> None:
    add_sector(sql, "active_conflict", None)
    old = tile(block.key(), captured_at=datetime(1950, 1, 1, tzinfo=timezone.utc))
    answer = insert(client, old)
    assert answer.outcome == INSERT_OUTCOME_INSERTED
    assert answer.tile.freshness_label == FRESHNESS_LABEL_FRESH


def test_a_stored_tile_sent_again_is_not_refused_for_its_age(
    client: TileCacheClient, block: Block, sql: psycopg.Connection[Any]
) -> None:
    same, other = (tile(key, captured_at=HALF_A_YEAR_AGO - DAY) for key in block.keys(2))
    bulk_insert(client, [same, other])
    add_sector(sql, "active_conflict", box_round(same.key, other.key))
    assert insert(client, same).outcome == INSERT_OUTCOME_ALREADY_PRESENT
    (answer,) = bulk_insert(client, [same, tile(other.key, "other", HALF_A_YEAR_AGO - DAY)])
    assert answer.already_present_count == 1
    assert [refused.reason for refused in answer.refused] == ["TILE_TOO_OLD"]


def test_a_replacement_is_labelled(
    client: TileCacheClient, block: Block, sql: psycopg.Connection[Any]
) -> None:
    key = block.key()
    insert(client, tile(key, "old", A_YEAR_AGO - 20 * DAY))
    add_sector(sql, "stable_rear", box_round(key))
    replacement = tile(key, "new", A_YEAR_AGO - DAY)
    answer = insert(client, replacement, ON_CONFLICT_REPLACE_IF_NEWER)
    assert answer.outcome == INSERT_OUTCOME_REPLACED
    assert answer.tile.freshness_label == FRESHNESS_LABEL_DOWNGRADED


@pytest.fixture
def own_sql(database: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection to the database of `daemon`."""
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


def restart(daemon: DaemonProcess) -> None:
    """Restarts a daemon, which updates all labels when it starts."""
    assert daemon.stop() == 0
    done = daemon.log.count("labels_up_to_date")
    daemon.start()
    eventually(lambda: daemon.log.count("labels_up_to_date") > done)


def test_labels_change_with_the_sectors(
    daemon: DaemonProcess, own_sql: psycopg.Connection[Any], block: Block
) -> None:
    conflict, rear, free = block.key(0), block.key(1), block.key(2)
    bulk_insert(
        daemon.client, [tile(key, captured_at=A_YEAR_AGO - DAY) for key in (conflict, rear, free)]
    )
    add_sector(own_sql, "active_conflict", box_round(conflict))
    add_sector(own_sql, "stable_rear", box_round(rear))
    restart(daemon)
    now = words(own_sql)
    assert [now[tile_uuid(key)] for key in (conflict, rear, free)] == [
        *("rejected", "downgraded", "fresh"),
    ]
    assert labels(daemon.client, [rear]) == [FRESHNESS_LABEL_DOWNGRADED]
    own_sql.execute("DELETE FROM sector_classifications")
    restart(daemon)
    assert set(words(own_sql).values()) == {"fresh"}


def test_labels_change_with_a_rule(
    daemon: DaemonProcess, own_sql: psycopg.Connection[Any], block: Block
) -> None:
    key = block.key()
    add_sector(own_sql, "stable_rear", box_round(key))
    insert(daemon.client, tile(key, captured_at=A_YEAR_AGO - DAY))
    assert words(own_sql) == {tile_uuid(key): "downgraded"}
    own_sql.execute("UPDATE tile_freshness_rules SET max_age_months = 24")
    restart(daemon)
    assert words(own_sql) == {tile_uuid(key): "fresh"}
    own_sql.execute("UPDATE tile_freshness_rules SET max_age_months = 1, action = 'reject'")
    restart(daemon)
    assert words(own_sql) == {tile_uuid(key): "rejected"}


def test_labels_of_the_oldest_schema_are_kept(
    daemon: DaemonProcess, own_sql: psycopg.Connection[Any], block: Block
) -> None:
    warn, reject = block.keys(2)
    add_sector(own_sql, "active_conflict", box_round(warn, reject))
    for key, word in ((warn, "stale_warn"), (reject, "stale_reject")):
        store_row(own_sql, key, freshness_status=word, captured_at=NOW - 5000 * DAY)
    restart(daemon)
    assert words(own_sql) == {tile_uuid(warn): "stale_warn", tile_uuid(reject): "stale_reject"}


def test_re_evaluated_labels_equal_those_of_the_policy(
    daemon: DaemonProcess, own_sql: psycopg.Connection[Any]
) -> None:
    chance = random.Random(7)
    policy = random_policy(chance)
    own_sql.execute("DELETE FROM tile_freshness_rules")
    for sector in policy.sectors:
        add_sector(own_sql, sector.classification.value, sector.bounding_box)
    for rule in policy.rules:
        own_sql.execute(
            "INSERT INTO tile_freshness_rules VALUES (%s, %s, %s)",
            [rule.classification.value, rule.max_age_months, rule.action.value],
        )
    expected = {}
    with own_sql.transaction():
        for _ in range(4_500):
            key = tile_key(10, chance.randrange(1024), chance.randrange(1024))
            if tile_uuid(key) in expected:
                continue
            captured_at = NOW - chance.randrange(1, 1_500) * DAY
            verdict = policy.evaluate(*cell_centre(10, key.x, key.y), captured_at, NOW)
            word = chance.choice(["fresh", "downgraded", "rejected"])
            store_row(own_sql, key, captured_at=captured_at, freshness_status=word)
            expected[tile_uuid(key)] = verdict.label.value
    restart(daemon)
    assert words(own_sql) == expected
    assert set(expected.values()) == {"fresh", "downgraded", "rejected"}


def random_policy(chance: random.Random) -> FreshnessPolicy:
    def latitudes() -> list[float]:
        return sorted(chance.uniform(-85, 85) for _ in range(2))

    boxes = [
        BoundingBox(south, chance.uniform(-180, 180), north, chance.uniform(-180, 180))
        for south, north in (latitudes() for _ in range(12))
    ]
    classifications = [chance.choice(list(SectorClassification)) for _ in boxes]
    return FreshnessPolicy(
        tuple(
            Sector("", classification, box, NOW)
            for classification, box in zip(classifications, boxes, strict=True)
        ),
        (
            FreshnessRule(SectorClassification.ACTIVE_CONFLICT, 7, FreshnessAction.REJECT),
            FreshnessRule(SectorClassification.STABLE_REAR, 19, FreshnessAction.DOWNGRADE),
        ),
    )


def test_months_are_added_as_postgresql_adds_them(postgres_dsn: str) -> None:
    chance = random.Random(8)
    first = datetime(1900, 1, 1, tzinfo=timezone.utc)
    moments = [first + timedelta(seconds=chance.randrange(5 * 10**9)) for _ in range(3_000)]
    moments += [
        datetime(year, month, day, 23, 59, 59, 999_999, timezone.utc)
        for year in (1999, 2000, 2023, 2024)
        for month, day in ((1, 31), (2, 28), (8, 31), (10, 31), (12, 31))
    ]
    moments.append(datetime(2024, 2, 29, tzinfo=timezone.utc))
    months = [chance.randrange(1, 600) for _ in moments]
    query = """
        SELECT (m AT TIME ZONE 'UTC' + make_interval(months => n)) AT TIME ZONE 'UTC'
        FROM unnest(%s::timestamptz[], %s::int[]) WITH ORDINALITY AS given (m, n, position)
        ORDER BY position"""
    with psycopg.connect(postgres_dsn) as connection:
        sums = [moment for (moment,) in connection.execute(query, [moments, months]).fetchall()]
    assert sums == [add_months(moment, n) for moment, n in zip(moments, months, strict=True)]
