"""Sectors, rules, labels and explanations."""

from datetime import datetime, timedelta, timezone
from typing import Any

import grpc
import psycopg
import pytest

from tests.admin import (
    ACTIVE_CONFLICT,
    DOWNGRADE,
    REJECT,
    STABLE_REAR,
    explain,
    read_label,
    reevaluate,
    set_rule,
    set_sector,
)
from tests.filling import fill
from tests.tiles import NOW, TIMEOUT_S, bulk_insert, insert, store_row, tile, tile_key
from tilecache.client import TileCacheClient
from tilecache.errors import CallError
from tilecache.v1.tile_cache_admin_pb2 import (
    DeleteSectorRequest,
    ListFreshnessRulesRequest,
    ListSectorsRequest,
    ReevaluateFreshnessRequest,
    Sector,
    SetSectorRequest,
)
from tilecache.v1.tile_metadata_store_pb2 import (
    FRESHNESS_LABEL_DOWNGRADED,
    FRESHNESS_LABEL_FRESH,
    FRESHNESS_LABEL_REJECTED,
    FRESHNESS_LABEL_STALE_WARN,
    INSERT_OUTCOME_ALREADY_PRESENT,
    INSERT_OUTCOME_DOWNGRADED,
    INSERT_OUTCOME_INSERTED,
)
from tilecache_daemon.service.freshness import RELABEL_BATCH_TILES

FRONT = (40.0, 20.0, 50.0, 30.0)
REAR = (40.0, 30.0, 50.0, 40.0)
EVERYWHERE = (-90.0, -180.0, 90.0, 180.0)
IN_FRONT = tile_key(10, 583, 356)  # 47.9 degrees north, 25.1 degrees east
IN_REAR = tile_key(10, 611, 356)  # 34.9 degrees east
OUTSIDE = tile_key(10, 500, 356)
MONTH = timedelta(days=31)


def delete_sector(admin: TileCacheClient, name: str) -> int:
    request = DeleteSectorRequest(name=name)
    return int(admin.admin.DeleteSector(request, timeout=TIMEOUT_S).relabelled_count)


def list_sectors(admin: TileCacheClient, page_size: int = 0) -> list[Sector]:
    sectors, token = [], ""
    while True:
        request = ListSectorsRequest(page_size=page_size, page_token=token)
        page = admin.admin.ListSectors(request, timeout=TIMEOUT_S)
        sectors += page.sectors
        token = page.next_page_token
        if not token:
            return sectors


def list_rules(admin: TileCacheClient) -> list[tuple[int, int, int]]:
    rules = admin.admin.ListFreshnessRules(ListFreshnessRulesRequest(), timeout=TIMEOUT_S).rules
    return [(rule.classification, rule.max_age_months, rule.action) for rule in rules]


def test_a_tile_that_its_sector_rejects_is_refused_and_not_stored(
    admin: TileCacheClient, sql: psycopg.Connection[Any]
) -> None:
    set_sector(admin, "front", ACTIVE_CONFLICT, FRONT)

    with pytest.raises(CallError) as refusal:
        insert(admin, tile(IN_FRONT, captured_at=NOW - 7 * MONTH))
    (answer,) = bulk_insert(
        admin,
        [tile(IN_FRONT, captured_at=NOW - 7 * MONTH), tile(OUTSIDE, captured_at=NOW - 7 * MONTH)],
    )

    assert refusal.value.code is grpc.StatusCode.FAILED_PRECONDITION
    assert refusal.value.reason == "TILE_TOO_OLD"
    assert refusal.value.facts["sector"] == "front"
    assert refusal.value.facts["max_age_months"] == "6"
    assert [(each.index, each.reason) for each in answer.refused] == [(0, "TILE_TOO_OLD")]
    assert sql.execute("SELECT x FROM tiles").fetchall() == [(OUTSIDE.x,)]


def test_a_tile_that_its_sector_downgrades_is_stored_as_downgraded(
    admin: TileCacheClient,
) -> None:
    set_sector(admin, "rear", STABLE_REAR, REAR)

    old = insert(admin, tile(IN_REAR, captured_at=NOW - 13 * MONTH))

    assert old.outcome == INSERT_OUTCOME_DOWNGRADED
    assert old.tile.freshness_label == FRESHNESS_LABEL_DOWNGRADED


def test_outside_all_sectors_nothing_expires(admin: TileCacheClient) -> None:
    set_sector(admin, "front", ACTIVE_CONFLICT, FRONT)

    stored = insert(admin, tile(OUTSIDE, captured_at=datetime(1950, 1, 1, tzinfo=timezone.utc)))

    assert stored.outcome == INSERT_OUTCOME_INSERTED
    assert stored.tile.freshness_label == FRESHNESS_LABEL_FRESH


def test_a_stored_tile_sent_again_is_not_refused_for_its_age(admin: TileCacheClient) -> None:
    old = tile(IN_FRONT, captured_at=NOW - 7 * MONTH)
    insert(admin, old)
    set_sector(admin, "front", ACTIVE_CONFLICT, FRONT)

    assert insert(admin, old).outcome == INSERT_OUTCOME_ALREADY_PRESENT


def test_stored_tiles_are_relabelled_when_a_sector_changes(admin: TileCacheClient) -> None:
    for key in (IN_FRONT, IN_REAR, OUTSIDE):
        insert(admin, tile(key, captured_at=NOW - 13 * MONTH))

    made = set_sector(admin, "s", STABLE_REAR, FRONT)
    assert [read_label(admin, key) for key in (IN_FRONT, IN_REAR)] == ["downgraded", "fresh"]
    stricter = set_sector(admin, "s", ACTIVE_CONFLICT, FRONT)
    assert [read_label(admin, key) for key in (IN_FRONT, IN_REAR)] == ["rejected", "fresh"]
    moved = set_sector(admin, "s", ACTIVE_CONFLICT, REAR)
    assert [read_label(admin, key) for key in (IN_FRONT, IN_REAR)] == ["fresh", "rejected"]
    assert delete_sector(admin, "s") == 1
    labels = [read_label(admin, key) for key in (IN_FRONT, IN_REAR, OUTSIDE)]

    assert labels == ["fresh"] * 3
    changes = [answer.relabelled_count for answer in (made, stricter, moved)]
    assert changes == [1, 1, 2]


def test_stored_tiles_are_relabelled_when_a_rule_changes(admin: TileCacheClient) -> None:
    set_sector(admin, "front", ACTIVE_CONFLICT, FRONT)
    insert(admin, tile(IN_FRONT, captured_at=NOW - 4 * MONTH))
    assert read_label(admin, IN_FRONT) == "fresh"

    stricter = set_rule(admin, ACTIVE_CONFLICT, 3, REJECT)
    assert (stricter.relabelled_count, read_label(admin, IN_FRONT)) == (1, "rejected")
    relaxed = set_rule(admin, ACTIVE_CONFLICT, 3, DOWNGRADE)
    assert (relaxed.relabelled_count, read_label(admin, IN_FRONT)) == (1, "downgraded")
    back = set_rule(admin, ACTIVE_CONFLICT, 6, REJECT)
    assert (back.relabelled_count, read_label(admin, IN_FRONT)) == (1, "fresh")


def test_the_strictest_of_several_sectors_applies(admin: TileCacheClient) -> None:
    insert(admin, tile(IN_FRONT, captured_at=NOW - 13 * MONTH))
    set_sector(admin, "the lenient one", STABLE_REAR, EVERYWHERE)
    assert read_label(admin, IN_FRONT) == "downgraded"

    set_sector(admin, "the strict one", ACTIVE_CONFLICT, FRONT)

    assert read_label(admin, IN_FRONT) == "rejected"


def test_a_sector_may_cross_the_antimeridian(admin: TileCacheClient) -> None:
    keys = [tile_key(4, 0, 8), tile_key(4, 15, 8), tile_key(4, 7, 8)]
    for key in keys:
        insert(admin, tile(key, captured_at=NOW - 13 * MONTH))

    set_sector(admin, "pacific", STABLE_REAR, (-30.0, 160.0, 0.0, -160.0))

    assert [read_label(admin, key) for key in keys] == ["downgraded", "downgraded", "fresh"]


def test_a_sector_contains_tiles_on_its_edge(admin: TileCacheClient) -> None:
    key = tile_key(1, 1, 0)
    stored = insert(admin, tile(key, captured_at=NOW - 13 * MONTH)).tile
    box = (stored.latitude, stored.longitude, stored.latitude + 1, stored.longitude + 1)

    set_sector(admin, "edge", STABLE_REAR, box)

    assert read_label(admin, key) == "downgraded"


def test_labels_of_the_oldest_schema_are_kept(
    admin: TileCacheClient, sql: psycopg.Connection[Any]
) -> None:
    store_row(sql, IN_FRONT, freshness_status="stale_warn", captured_at=NOW - 24 * MONTH)

    set_sector(admin, "front", ACTIVE_CONFLICT, FRONT)

    assert read_label(admin, IN_FRONT) == "stale_warn"
    explanation = explain(admin, IN_FRONT)
    assert explanation.stored_label == FRESHNESS_LABEL_STALE_WARN
    assert explanation.current_label == FRESHNESS_LABEL_REJECTED


def test_a_sector_without_a_box_contains_no_tile(
    admin: TileCacheClient, sql: psycopg.Connection[Any]
) -> None:
    insert(admin, tile(IN_FRONT, captured_at=NOW - 24 * MONTH))
    sql.execute(
        "INSERT INTO sector_classifications (name, classification) VALUES ('old', 'stable_rear')"
    )

    assert reevaluate(admin) == 0
    (sector,) = list_sectors(admin)
    assert sector.name == "old"
    assert not sector.HasField("bounding_box")


def test_labels_are_updated_in_batches(
    admin: TileCacheClient, sql: psycopg.Connection[Any]
) -> None:
    count = RELABEL_BATCH_TILES * 2 + 10
    fill(sql, count, disk_bytes=1)
    sql.execute("UPDATE tiles SET freshness_status = 'rejected'")

    progress = list(
        admin.admin.ReevaluateFreshness(ReevaluateFreshnessRequest(), timeout=TIMEOUT_S)
    )

    assert len(progress) >= 3
    evaluated = [step.evaluated_count for step in progress]
    assert evaluated == sorted(evaluated)
    assert (progress[-1].evaluated_count, progress[-1].relabelled_count) == (count, count)
    transactions = sql.execute("SELECT count(*) FROM tiles GROUP BY xmin::text").fetchall()
    assert max(transactions) <= (RELABEL_BATCH_TILES,)


def test_setting_a_sector_again_changes_it(admin: TileCacheClient) -> None:
    first = set_sector(admin, "front", ACTIVE_CONFLICT, FRONT).sector
    second = set_sector(admin, "front", STABLE_REAR, REAR).sector

    assert list_sectors(admin) == [second]
    assert second.created_at == first.created_at
    assert second.classification == STABLE_REAR
    assert second.bounding_box.west == 30.0


def test_pages_of_sectors_are_complete(admin: TileCacheClient) -> None:
    names = ["Zürich", "a", "b b", "B", "aa", "Ä", "ÿ", "_"]
    for name in names:
        set_sector(admin, name, STABLE_REAR, FRONT)

    paged = [sector.name for sector in list_sectors(admin, page_size=1)]

    assert sorted(paged) == sorted(names)
    assert paged == [sector.name for sector in list_sectors(admin)]


def test_deleting_an_unknown_sector_is_an_error(admin: TileCacheClient) -> None:
    with pytest.raises(CallError) as refusal:
        delete_sector(admin, "nowhere")

    assert refusal.value.code is grpc.StatusCode.NOT_FOUND
    assert refusal.value.reason == "SECTOR_NOT_FOUND"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": ""}, "sector.name"),
        ({"name": "  "}, "sector.name"),
        ({"name": " front"}, "sector.name"),
        ({"name": "fr\nont"}, "sector.name"),
        ({"name": "x" * 101}, "sector.name"),
        ({"classification": 0}, "sector.classification"),
        ({"classification": 9}, "sector.classification"),
        ({"bounding_box": None}, "sector.bounding_box"),
        ({"bounding_box": (50, 20, 40, 30)}, "sector.bounding_box.south"),
        ({"bounding_box": (40, 20, 40, 30)}, "sector.bounding_box.north"),
        ({"bounding_box": (40, 20, 50, 20)}, "sector.bounding_box.east"),
        ({"bounding_box": (-91, 20, 50, 30)}, "sector.bounding_box.south"),
        ({"bounding_box": (40, 20, 50, 181)}, "sector.bounding_box.east"),
        ({"bounding_box": (40, float("nan"), 50, 30)}, "sector.bounding_box.west"),
    ],
)
def test_an_invalid_sector_is_refused(
    admin: TileCacheClient, change: dict[str, Any], field: str
) -> None:
    given = {"name": "front", "classification": ACTIVE_CONFLICT, "bounding_box": FRONT} | change
    sector = Sector(name=given["name"], classification=given["classification"])
    if given["bounding_box"]:
        for side, degrees in zip(
            ("south", "west", "north", "east"), given["bounding_box"], strict=True
        ):
            setattr(sector.bounding_box, side, degrees)

    with pytest.raises(CallError) as refusal:
        admin.admin.SetSector(SetSectorRequest(sector=sector), timeout=TIMEOUT_S)

    assert refusal.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert [each.field for each in refusal.value.violations] == [field]
    assert list_sectors(admin) == []


def test_the_default_rules_are_those_of_the_migration(admin: TileCacheClient) -> None:
    assert list_rules(admin) == [(ACTIVE_CONFLICT, 6, REJECT), (STABLE_REAR, 12, DOWNGRADE)]


@pytest.mark.parametrize(
    ("rule", "field"),
    [
        ((0, 6, REJECT), "rule.classification"),
        ((ACTIVE_CONFLICT, 0, REJECT), "rule.max_age_months"),
        ((ACTIVE_CONFLICT, -1, REJECT), "rule.max_age_months"),
        ((ACTIVE_CONFLICT, 1201, REJECT), "rule.max_age_months"),
        ((ACTIVE_CONFLICT, 6, 0), "rule.action"),
        ((ACTIVE_CONFLICT, 13, REJECT), "rule.max_age_months"),  # more than the rear's 12
        ((STABLE_REAR, 5, DOWNGRADE), "rule.max_age_months"),  # less than the front's 6
    ],
)
def test_an_invalid_rule_is_refused(
    admin: TileCacheClient, rule: tuple[Any, int, Any], field: str
) -> None:
    before = list_rules(admin)

    with pytest.raises(CallError) as refusal:
        set_rule(admin, *rule)

    assert refusal.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert [each.field for each in refusal.value.violations] == [field]
    assert list_rules(admin) == before


def test_an_explanation_names_the_sector_and_rule_that_apply(admin: TileCacheClient) -> None:
    front = set_sector(admin, "front", ACTIVE_CONFLICT, FRONT).sector
    rear = set_sector(admin, "around it", STABLE_REAR, EVERYWHERE).sector
    captured_at = NOW - timedelta(days=40)
    insert(admin, tile(IN_FRONT, captured_at=captured_at))

    answer = explain(admin, IN_FRONT)

    assert answer.stored_label == answer.current_label == FRESHNESS_LABEL_FRESH
    assert answer.sector == front
    assert list(answer.sectors) == [front, rear]
    assert (answer.rule.max_age_months, answer.rule.action) == (6, REJECT)
    assert answer.age.ToTimedelta() >= timedelta(days=40)
    assert answer.age_months == 1
    assert answer.next_label == FRESHNESS_LABEL_REJECTED
    assert answer.clock_trusted
    for word in ("'front'", "active_conflict", "6 months", "fresh", "becomes rejected on"):
        assert word in answer.explanation


def test_an_explanation_states_that_an_expired_label_does_not_change(
    admin: TileCacheClient,
) -> None:
    set_sector(admin, "rear", STABLE_REAR, REAR)
    insert(admin, tile(IN_REAR, captured_at=NOW - 13 * MONTH))

    answer = explain(admin, IN_REAR)

    assert answer.current_label == FRESHNESS_LABEL_DOWNGRADED
    assert not answer.HasField("next_change_at")
    assert "does not change" in answer.explanation


def test_an_explanation_states_that_a_tile_is_outside_all_sectors(admin: TileCacheClient) -> None:
    insert(admin, tile(OUTSIDE))

    answer = explain(admin, OUTSIDE)

    assert answer.current_label == FRESHNESS_LABEL_FRESH
    for field in ("sector", "rule", "next_change_at"):
        assert not answer.HasField(field)
    assert "outside all sectors" in answer.explanation


def test_explaining_an_unknown_tile_is_an_error(admin: TileCacheClient) -> None:
    with pytest.raises(CallError) as refusal:
        explain(admin, OUTSIDE)

    assert refusal.value.code is grpc.StatusCode.NOT_FOUND
