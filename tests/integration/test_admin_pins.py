"""Pins: areas whose tiles neither an eviction nor a deletion takes."""

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest

from tests.admin import delete, delete_pin, evict, list_pins, read_usage, set_pin, touch
from tests.clocked_daemon import ClockedDaemon
from tests.daemon_process import DaemonProcess
from tests.filling import fill
from tests.tiles import (
    NOW,
    ONBOARD,
    Block,
    box_region,
    bulk_insert,
    cell_region,
    corridor_region,
    insert,
    is_stored,
    polygon_region,
    store_tiles,
    tile,
    tile_uuid,
    union_region,
    waiting_for_locks,
)
from tests.waiting import eventually
from tilecache.client import TileCacheClient
from tilecache.errors import CallError
from tilecache.mercator import cell_bounds, cell_centre
from tilecache.v1.tile_cache_admin_pb2 import (
    EVICTION_STOP_EMPTY,
    EVICTION_STOP_GOAL_MET,
    EVICTION_STOP_PENDING_UPLOADS,
    EVICTION_STOP_PINNED,
)
from tilecache.v1.tile_identity_pb2 import TileKey
from tilecache.v1.tile_metadata_store_pb2 import (
    ON_CONFLICT_REPLACE_IF_NEWER,
    DescribeCoverageRequest,
    Region,
)

TAKEOFF = datetime(2026, 12, 24, 6, tzinfo=timezone.utc)


def cells(block: Block, x_from: int, x_to: int) -> Region:
    """Some cells of a block's first row."""
    return cell_region(block.x + x_from, block.x + x_to, block.y, block.y)


def stored(client: TileCacheClient, keys: list[TileKey]) -> list[bool]:
    return [is_stored(client, key) for key in keys]


def test_an_eviction_spares_what_is_pinned_and_names_the_pins(
    admin: TileCacheClient, block: Block
) -> None:
    keys = store_tiles(admin, block, 6)
    set_pin(admin, "route", cells(block, 0, 2), [18])
    set_pin(admin, "elsewhere", cells(Block(), 0, 2), [18])

    some = evict(admin, free_bytes=100)
    assert [each.tile_uuid for each in some.tiles] == [tile_uuid(keys[3])]
    assert (some.summary.stop, some.summary.pinned_count) == (EVICTION_STOP_GOAL_MET, 0)

    rest = evict(admin, max_used_bytes=0)
    assert stored(admin, keys) == [True, True, True, False, False, False]
    assert not rest.summary.goal_met
    assert rest.summary.stop == EVICTION_STOP_PINNED
    assert list(rest.summary.stops) == [EVICTION_STOP_PINNED]
    assert rest.summary.pinned_count == 3
    assert list(rest.summary.pin_names) == ["route"]

    all_of_it = evict(admin, max_used_bytes=0, include_pinned=True)
    assert all_of_it.summary.evicted_count == 3
    assert list(all_of_it.summary.stops) == [EVICTION_STOP_GOAL_MET]


def test_all_reasons_for_the_end_of_an_eviction_are_named(
    admin: TileCacheClient, block: Block
) -> None:
    store_tiles(admin, block, 2)
    bulk_insert(admin, [tile(block.key(column, 1, ONBOARD), disk_bytes=10) for column in (0, 1)])
    set_pin(admin, "route", cell_region(block.x, block.x, block.y, block.y + 1), [18])

    summary = evict(admin, max_used_bytes=0).summary
    assert list(summary.stops) == [EVICTION_STOP_PENDING_UPLOADS, EVICTION_STOP_PINNED]
    assert summary.stop == EVICTION_STOP_PENDING_UPLOADS
    assert (summary.pending_upload_count, summary.pinned_count) == (2, 1)

    summary = evict(admin, max_used_bytes=0, include_pending_uploads=True).summary
    assert list(summary.stops) == [EVICTION_STOP_PINNED]
    assert summary.pinned_count == 2


def test_a_deletion_spares_what_is_pinned_unless_told_so(
    admin: TileCacheClient, block: Block
) -> None:
    keys = store_tiles(admin, block, 5)
    set_pin(admin, "route", cells(block, 0, 1), [18])
    set_pin(admin, "survey", cells(block, 1, 2), [18])
    ids = [tile_uuid(key) for key in keys]

    by_region = delete(admin, region=cells(block, 0, 3), zooms=[18])
    assert (by_region.summary.deleted_count, by_region.summary.pinned_count) == (1, 3)
    assert list(by_region.summary.pin_names) == ["route", "survey"]
    by_id = delete(admin, tile_uuids=ids[2:])
    assert by_id.summary.not_found_tile_uuids == [ids[3]]
    assert (by_id.summary.deleted_count, by_id.summary.pinned_count) == (1, 1)
    assert stored(admin, keys) == [True, True, True, False, False]

    assert delete(admin, tile_uuids=ids[:1], include_pinned=True).summary.deleted_count == 1
    assert delete(admin, zooms=[18], include_pinned=True).summary.deleted_count == 2


@pytest.mark.parametrize("include_pinned", [False, True])
def test_a_dry_run_reports_the_same_as_a_run(
    admin: TileCacheClient, block: Block, include_pinned: bool
) -> None:
    store_tiles(admin, block, 5)
    set_pin(admin, "route", cells(block, 0, 2), [18])
    request: dict[str, Any] = {"include_pinned": include_pinned}

    for call, goal in ((delete, {"zooms": [18]}), (evict, {"max_used_bytes": 0})):
        tried: Any = call(admin, **goal, **request, dry_run=True)
        if call is evict:
            done: Any = call(admin, **goal, **request)
            tried.summary.dry_run = False
            assert tried.summary == done.summary
        else:
            assert tried.summary.deleted_count == (5 if include_pinned else 2)
            assert tried.summary.pinned_count == (0 if include_pinned else 3)


def test_tiles_that_are_stored_later_are_pinned_too(admin: TileCacheClient, block: Block) -> None:
    set_pin(admin, "route", cells(block, 0, 9), [18])
    keys = store_tiles(admin, block, 3)

    assert evict(admin, max_used_bytes=0).summary.evicted_count == 0
    assert stored(admin, keys) == [True] * 3


def test_a_replaced_tile_stays_pinned(admin: TileCacheClient, block: Block) -> None:
    insert(admin, tile(block.key(), captured_at=NOW - timedelta(days=9)))
    set_pin(admin, "route", cells(block, 0, 0), [18])

    newer = tile(block.key(), "newer", captured_at=NOW, file_path="newer.jpg")
    insert(admin, newer, ON_CONFLICT_REPLACE_IF_NEWER)

    assert evict(admin, max_used_bytes=0).summary.evicted_count == 0


@pytest.mark.parametrize("shape", ["box", "circle", "corridor", "polygon", "union"])
def test_a_pin_holds_the_cells_of_its_region_and_no_others(
    admin: TileCacheClient, block: Block, shape: str
) -> None:
    keys = list(block.keys(40, 40))
    bulk_insert(admin, [tile(key, disk_bytes=1) for key in keys])
    south, west, north, east = cell_bounds(18, block.x + 20, block.y + 20)
    middle = cell_centre(18, block.x + 20, block.y + 20)
    other = cell_centre(18, block.x + 33, block.y + 3)
    box = box_region(south - 0.01, west - 0.01, north + 0.001, east + 0.007)
    region = {
        "box": box,
        "circle": corridor_region([middle], 700.0),
        "corridor": corridor_region([middle, other], 150.0),
        "polygon": polygon_region([(south, west), (south, east + 0.03), (north + 0.02, east)]),
        "union": union_region(box, corridor_region([other], 100.0)),
    }[shape]
    covered = {
        cell
        for answer in admin.store.DescribeCoverage(
            DescribeCoverageRequest(zoom=18, region=region), timeout=60
        )
        for cell in [answer.summary.usable_count]
    }

    answer = set_pin(admin, "area", region, [18])
    queried = read_usage(admin).pinned.tile_count
    evicted = evict(admin, max_used_bytes=0).summary

    assert {answer.pin.held.tile_count, queried} == covered
    assert 3 < queried < 1_600
    assert evicted.evicted_count == 1_600 - queried


def test_an_eviction_that_has_begun_spares_what_is_pinned_meanwhile(
    admin: TileCacheClient, shared_database: str, block: Block
) -> None:
    keys = store_tiles(admin, block, 3)
    with ThreadPoolExecutor() as pool, psycopg.connect(shared_database) as writer:
        # The eviction waits with its first transaction for this lock.
        writer.execute("SELECT pg_advisory_xact_lock_shared(%s)", [0x7469_6C65_0005])
        eviction = pool.submit(evict, admin, max_used_bytes=0)
        assert eventually(lambda: waiting_for_locks(shared_database) == 1)
        # Set by another program: the daemon's own SetPin would wait, too.
        writer.execute(
            """WITH pin AS (
                   INSERT INTO tile_pins (name, region, zooms, cell_count, created_at)
                   VALUES ('late', '', '{18}', 1, now()) RETURNING id
               )
               INSERT INTO tile_pin_blocks (zoom, x, y, pin_id, cells)
               SELECT 18, %s, %s, id, decode(repeat('ff', 128), 'hex') FROM pin""",
            [block.x >> 5, block.y >> 5],
        )
        writer.commit()

        assert eviction.result().summary.evicted_count == 0
    assert stored(admin, keys) == [True] * 3


def test_setting_a_pin_waits_for_the_eviction_that_is_under_way(
    admin: TileCacheClient, shared_database: str, block: Block
) -> None:
    with ThreadPoolExecutor() as pool, psycopg.connect(shared_database) as evicting:
        evicting.execute("SELECT pg_advisory_xact_lock(%s)", [0x7469_6C65_0005])
        pinning = pool.submit(set_pin, admin, "route", cells(block, 0, 0), [18])
        assert eventually(lambda: waiting_for_locks(shared_database) == 1)
        assert not pinning.done()
        evicting.commit()
        assert pinning.result().pin.name == "route"


def test_what_was_chosen_before_a_pin_is_checked_where_it_is_evicted(
    admin: TileCacheClient, sql: psycopg.Connection[Any], block: Block
) -> None:
    """The statement that evicts, with the tiles that were chosen before."""
    from tilecache_daemon.store.statements import SQL

    keys = store_tiles(admin, block, 2)
    chosen = sql.execute("SELECT id, access_order FROM tiles ORDER BY x").fetchall()
    set_pin(admin, "route", cells(block, 0, 0), [18])

    parameters = {
        "ids": [row[0] for row in chosen],
        "orders": [row[1] for row in chosen],
        "include_pending": False,
        "include_pinned": False,
        "now": NOW,
        "reason": "evicted",
    }
    evicted = sql.execute(SQL["evict_tiles"], parameters).fetchall()

    assert [row[1] for row in evicted] == [tile_uuid(keys[1])]


def test_an_insert_under_a_full_ceiling_evicts_what_is_not_pinned(
    database: str, short_directory: Path, block: Block
) -> None:
    settings = {"max_used_bytes": 1_000, "evict_on_insert": True}
    with DaemonProcess(short_directory, dsn=database, **settings) as daemon:
        admin = daemon.admin_client
        keys = store_tiles(admin, block, 10)
        set_pin(admin, "route", cells(block, 0, 7), [18])
        late = Block()

        for column in range(3):
            insert(admin, tile(late.key(column), disk_bytes=100))
        assert stored(admin, keys) == [True] * 8 + [False] * 2
        assert stored(admin, [late.key(column) for column in range(3)]) == [False, True, True]

        set_pin(admin, "late", cells(late, 0, 9), [18])
        with pytest.raises(CallError) as refusal:
            insert(admin, tile(late.key(5), disk_bytes=100))
        assert refusal.value.reason == "STORAGE_CEILING"

        delete_pin(admin, "route")
        insert(admin, tile(late.key(5), disk_bytes=100))
        assert stored(admin, keys)[:2] == [False, True]


def test_a_pin_is_listed_with_what_it_holds(admin: TileCacheClient, block: Block) -> None:
    store_tiles(admin, block, 4)
    region = cells(block, 2, 9)
    answer = set_pin(admin, "route", region, [18], TAKEOFF + timedelta(days=3_000))
    set_pin(admin, "a", cells(block, 0, 3), [18])

    first, second = list_pins(admin)

    assert [first.name, second.name] == ["a", "route"]
    assert second == answer.pin
    assert (second.region, list(second.zooms), second.ended) == (region, [18], False)
    assert second.expires_at.ToDatetime(timezone.utc) == TAKEOFF + timedelta(days=3_000)
    assert not first.HasField("expires_at")
    assert (second.cell_count, second.held.tile_count, second.held.used_bytes) == (8, 2, 200)
    usage = read_usage(admin)
    assert (usage.pinned.tile_count, usage.pinned.used_bytes) == (4, 400)


def test_a_pin_may_be_replaced_and_deleted(admin: TileCacheClient, block: Block) -> None:
    keys = store_tiles(admin, block, 3)
    set_pin(admin, "route", cells(block, 0, 0), [18])
    set_pin(admin, "route", cells(block, 1, 1), [18])
    assert len(list_pins(admin)) == 1
    evict(admin, max_used_bytes=0)
    assert stored(admin, keys) == [False, True, False]

    delete_pin(admin, "route")
    assert list_pins(admin) == []
    assert evict(admin, max_used_bytes=0).summary.stop == EVICTION_STOP_GOAL_MET
    assert evict(admin, free_bytes=1).summary.stop == EVICTION_STOP_EMPTY
    with pytest.raises(CallError) as refusal:
        delete_pin(admin, "route")
    assert (refusal.value.code, refusal.value.reason) == (
        grpc.StatusCode.NOT_FOUND,
        "PIN_NOT_FOUND",
    )


def test_pins_are_listed_in_pages(admin: TileCacheClient, block: Block) -> None:
    for name in ("b", "c", "a", "B"):
        set_pin(admin, name, cells(block, 0, 0), [18])

    assert [pin.name for pin in list_pins(admin, page_size=3)] == ["B", "a", "b"]
    assert [pin.name for pin in list_pins(admin, page_token="b")] == ["c"]


def test_the_answer_says_whether_all_fits_under_the_ceiling(
    database: str, short_directory: Path, block: Block
) -> None:
    with DaemonProcess(short_directory, dsn=database, max_used_bytes=1_000) as daemon:
        admin = daemon.admin_client
        store_tiles(admin, block, 2)
        bulk_insert(admin, [tile(block.key(0, 1, ONBOARD), disk_bytes=100)])
        bulk_insert(admin, [tile(block.key(1, 0, ONBOARD), disk_bytes=100)])

        small = set_pin(admin, "small", cells(block, 1, 2), [18])
        large = set_pin(admin, "large", cells(block, 0, 9), [18])

    assert (small.missing_count, small.missing_bytes) == (1, 100)
    assert small.kept_bytes == 300
    assert (small.max_used_bytes, small.fits) == (1_000, True)
    assert (large.missing_count, large.missing_bytes) == (8, 800)
    assert (large.kept_bytes, large.fits) == (400, False)


def test_a_pin_ends_by_itself_and_is_listed_as_such(
    database: str, short_directory: Path, block: Block
) -> None:
    with ClockedDaemon(short_directory, TAKEOFF, dsn=database) as daemon:
        admin = daemon.admin_client
        keys = store_tiles(admin, block, 2)
        set_pin(admin, "route", cells(block, 0, 1), [18], TAKEOFF + timedelta(hours=5))
        daemon.pass_time(timedelta(hours=4, minutes=59))
        assert evict(admin, max_used_bytes=0).summary.pinned_count == 2
        assert delete(admin, zooms=[18]).summary.pinned_count == 2

        daemon.pass_time(timedelta(minutes=1))

        (pin,) = list_pins(admin)
        assert pin.ended
        assert pin.held.tile_count == 0
        assert read_usage(admin).pinned.tile_count == 0
        assert delete(admin, tile_uuids=[tile_uuid(keys[0])]).summary.deleted_count == 1
        assert evict(admin, max_used_bytes=0).summary.evicted_count == 1


def test_a_pin_does_not_end_while_the_clock_is_not_trusted(
    database: str, short_directory: Path, block: Block
) -> None:
    end = TAKEOFF + timedelta(hours=5)
    with ClockedDaemon(short_directory, TAKEOFF, dsn=database) as daemon:
        store_tiles(daemon.admin_client, block, 2)
        set_pin(daemon.admin_client, "route", cells(block, 0, 0), [18], end)
        set_pin(
            daemon.admin_client, "ended", cells(block, 1, 1), [18], TAKEOFF + timedelta(hours=1)
        )
        daemon.pass_time(timedelta(hours=4))
        assert [pin.ended for pin in list_pins(daemon.admin_client)] == [True, False]
        touch(daemon.client, block.key())
    with psycopg.connect(database, autocommit=True) as sql:
        # So late that the end has passed by what the database has recorded.
        sql.execute("UPDATE tiles SET created_at = %s", [end + timedelta(days=1)])
    with ClockedDaemon(
        short_directory, datetime(1970, 1, 1, tzinfo=timezone.utc), dsn=database
    ) as daemon:
        admin = daemon.admin_client
        assert [pin.ended for pin in list_pins(admin)] == [True, False]
        assert evict(admin, max_used_bytes=0).summary.pin_names == ["route"]

        daemon.set_clock(end + timedelta(days=2))

        assert eventually(lambda: [pin.ended for pin in list_pins(admin)] == [True, True])


@pytest.mark.parametrize(
    ("pin", "field"),
    [
        ({"name": ""}, "pin.name"),
        ({"name": " x"}, "pin.name"),
        ({"name": "x" * 101}, "pin.name"),
        ({"zooms": []}, "pin.zooms"),
        ({"zooms": [3, 23]}, "pin.zooms[1]"),
        ({"region": Region()}, "pin.region"),
        ({"region": corridor_region([], 1)}, "pin.region.corridor.waypoints"),
        ({"region": cell_region(0, 1, 0, 1), "zooms": [3, 4]}, "pin.zooms"),
        ({"region": box_region(-90, -180, 90, 180), "zooms": [10, 11]}, "region"),
        ({"expires_at": datetime(2026, 1, 1, tzinfo=timezone.utc)}, "pin.expires_at"),
    ],
)
def test_an_invalid_pin_is_refused(admin: TileCacheClient, pin: dict[str, Any], field: str) -> None:
    given: dict[str, Any] = {"name": "x", "region": box_region(0, 0, 1, 1), "zooms": [4]}
    with pytest.raises(CallError) as refusal:
        set_pin(admin, **(given | pin))
    assert refusal.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in refusal.value.violations] == [field]
    assert list_pins(admin) == []


def test_a_large_pin_is_answered(admin: TileCacheClient, sql: psycopg.Connection[Any]) -> None:
    fill(sql, 3_000, disk_bytes=10)

    answer = set_pin(admin, "world", box_region(-90, -180, 90, 180), list(range(11)))

    assert answer.pin.cell_count == sum(4**zoom for zoom in range(11))
    assert sql.execute("SELECT count(*) FROM tile_pin_blocks").fetchall() == [(1_370,)]
