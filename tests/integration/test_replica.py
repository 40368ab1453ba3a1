"""The replica beside a daemon: what it holds is what a query returns."""

import math
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest

from tests.daemon_process import DaemonProcess
from tests.tiles import (
    GOOGLEMAPS,
    ONBOARD,
    TIMEOUT_S,
    YESTERDAY,
    Block,
    bulk_insert,
    cell_region,
    insert,
    random_flight,
    store_row,
    tile,
    tile_uuid,
)
from tests.waiting import eventually
from tilecache.client import TileCacheClient
from tilecache.errors import CallError
from tilecache.mercator import BlockKey, block_of, cell_centre
from tilecache.replica import NotHeldError, TileReplica
from tilecache.v1.tile_cache_admin_pb2 import DeleteTilesRequest
from tilecache.v1.tile_metadata_store_pb2 import (
    FRESHNESS_LABEL_REJECTED,
    ON_CONFLICT_REPLACE_IF_NEWER,
    TILE_SELECTION_BEST_PER_CELL,
    QueryTilesRequest,
    TileMetadata,
    TileRef,
    TouchTilesRequest,
    WatchedArea,
)

SYNC_S = 10.0


@pytest.fixture
def replica(client: TileCacheClient) -> Iterator[TileReplica]:
    with client.replica() as replica:
        yield replica


@pytest.fixture
def admin_client(shared_daemon: DaemonProcess) -> TileCacheClient:
    return shared_daemon.admin_client


def follow(replica: TileReplica, block: Block) -> None:
    """Follows all cells of a block of test cells, and waits for them."""
    replica.follow_areas([WatchedArea(zoom=block.zoom, region=block.region)])
    replica.wait_until_synced(SYNC_S)


def held(replica: TileReplica, block: Block, **filters: Any) -> list[TileMetadata]:
    cells = block.region.cell_range
    return in_order(
        replica.cells(block.zoom, cells.x_from, cells.x_to, cells.y_from, cells.y_to, **filters)
    )


def queried(client: TileCacheClient, block: Block, **filters: Any) -> list[TileMetadata]:
    request = QueryTilesRequest(zoom=block.zoom, region=block.region, **filters)
    return in_order(
        tile
        for answer in client.store.QueryTiles(request, timeout=TIMEOUT_S)
        for tile in answer.tiles
    )


def in_order(tiles: Any) -> list[TileMetadata]:
    """By id, without the access times, which a replica leaves out."""
    copies = []
    for each in tiles:
        copy = TileMetadata.FromString(each.SerializeToString())
        copy.ClearField("accessed_at")
        copies.append(copy)
    return sorted(copies, key=lambda tile: tile.tile_uuid)


def test_a_replica_holds_what_a_query_returns(
    client: TileCacheClient, replica: TileReplica, block: Block
) -> None:
    bulk_insert(client, [tile(key, key.SerializeToString().hex()) for key in block.keys(40, 40)])
    follow(replica, block)
    window = replica.cells(block.zoom, block.x, block.x + 99, block.y, block.y + 99)
    assert window.complete
    assert not window.degraded
    assert held(replica, block) == queried(client, block)
    assert len(window) == 1_600
    latitude, longitude = cell_centre(block.zoom, block.x + 10, block.y + 10)
    around = replica.around(latitude, longitude, 500, block.zoom)
    assert around.complete
    assert 25 < len(around) < 1_600


def test_a_change_is_seen(client: TileCacheClient, replica: TileReplica, block: Block) -> None:
    follow(replica, block)
    key = block.key(3, 4)
    assert replica.best(key.zoom, key.x, key.y) is None
    stored = insert(client, tile(key)).tile
    eventually(lambda: replica.best(key.zoom, key.x, key.y))
    assert in_order([replica.get(stored.tile_uuid)]) == in_order([stored])
    newer = tile(key, "newer", captured_at=YESTERDAY + timedelta(hours=1))
    insert(client, newer, ON_CONFLICT_REPLACE_IF_NEWER)
    eventually(lambda: replica.get(stored.tile_uuid).content_sha256 == newer.content_sha256)
    assert held(replica, block) == queried(client, block)


def test_a_deletion_is_seen(
    client: TileCacheClient, admin_client: TileCacheClient, replica: TileReplica, block: Block
) -> None:
    keys = list(block.keys(5, 5))
    bulk_insert(client, [tile(key) for key in keys])
    follow(replica, block)

    gone = [tile_uuid(key) for key in keys[:7]]
    list(admin_client.admin.DeleteTiles(DeleteTilesRequest(tile_uuids=gone), timeout=TIMEOUT_S))

    eventually(lambda: len(held(replica, block)) == 18)
    assert held(replica, block) == queried(client, block)
    assert replica.best(18, keys[0].x, keys[0].y) is None
    with pytest.raises(NotHeldError):
        replica.get(gone[0])


def test_filters_are_those_of_a_query(
    client: TileCacheClient, sql: psycopg.Connection[Any], replica: TileReplica, block: Block
) -> None:
    for column in range(6):
        insert(client, tile(block.key(column)))
        flown = block.key(column, 0, ONBOARD, random_flight())
        insert(client, tile(flown, captured_at=YESTERDAY - timedelta(hours=column - 3)))
    labels = ("rejected", "stale_reject", "stale_warn", "downgraded")
    for column, label in enumerate(labels):
        store_row(sql, block.key(column, 1), freshness_status=label)
    follow(replica, block)

    rejected = {"labels": [FRESHNESS_LABEL_REJECTED]}
    onboard = {"sources": [ONBOARD]}
    best = {"best_per_cell": True}, {"selection": TILE_SELECTION_BEST_PER_CELL}
    assert held(replica, block) == queried(client, block)
    assert held(replica, block, **rejected) == queried(client, block, **rejected) != []
    assert held(replica, block, **onboard) == queried(client, block, **onboard) != []
    assert held(replica, block, **best[0]) == queried(client, block, **best[1]) != []
    both = held(replica, block, **onboard, **best[0])
    assert both == queried(client, block, **onboard, **best[1]) != []
    assert replica.best(18, block.x, block.y + 1) is None
    stored = replica.find(18, block.x, block.y + 1, "googlemaps")
    assert stored
    assert stored.freshness_label == FRESHNESS_LABEL_REJECTED


def test_a_window_across_blocks_and_beyond_the_followed_area(
    client: TileCacheClient, replica: TileReplica, block: Block
) -> None:
    bulk_insert(client, [tile(key) for key in block.keys(100, 3)])
    replica.follow_areas(
        [WatchedArea(zoom=18, region=cell_region(block.x, block.x + 63, block.y, block.y))]
    )
    replica.wait_until_synced(SYNC_S)

    inside = replica.cells(18, block.x + 20, block.x + 40, block.y, block.y + 2)
    beyond = replica.cells(18, block.x + 60, block.x + 70, block.y, block.y)
    empty = replica.cells(18, block.x, block.x + 5, block.y + 10, block.y + 12)
    unknown = replica.cells(18, block.x, block.x + 5, block.y + 900, block.y + 901)
    assert (len(inside), inside.complete) == (63, True)
    assert (len(beyond), beyond.complete) == (4, False)
    assert (len(empty), empty.complete) == (0, True)
    assert (len(unknown), unknown.complete) == (0, False)
    assert (len(inside[1:3]), inside[0] in inside) == (2, True)
    for read in (
        lambda: replica.best(18, block.x, block.y + 900),
        lambda: replica.find(18, block.x, block.y + 900, GOOGLEMAPS),
        lambda: replica.get(tile_uuid(block.key(0, 900))),
    ):
        with pytest.raises(NotHeldError):
            read()


def test_a_box_holds_the_cells_of_a_query(
    client: TileCacheClient, replica: TileReplica, block: Block
) -> None:
    bulk_insert(client, [tile(key) for key in block.keys(20, 20)])
    follow(replica, block)
    north, west = cell_centre(18, block.x + 3, block.y + 3)
    south, east = cell_centre(18, block.x + 9, block.y + 9)

    window = replica.box(south, west, north, east, 18)

    assert (len(window), window.complete) == (49, True)


def test_the_age_is_bounded_and_grows_while_the_daemon_is_away(
    database: str, short_directory: Path
) -> None:
    block = Block()
    with DaemonProcess(short_directory, dsn=database) as daemon:
        insert(daemon.client, tile(block.key()))
        with daemon.client.replica() as replica:
            assert replica.age_s == math.inf
            assert replica.degraded
            follow(replica, block)
            eventually(lambda: replica.age_s < 3 and not replica.degraded)
            daemon.kill()
            eventually(lambda: replica.degraded and not replica.synced)
            eventually(lambda: replica.age_s > 3)
            window = replica.cells(18, block.x, block.x, block.y, block.y)
            assert (len(window), window.complete, window.degraded) == (1, True, True)
            assert window.age_s > 3

            daemon.start()
            added = insert(daemon.client, tile(block.key(1))).tile
            eventually(lambda: replica.synced and replica.age_s < 3)
            assert not replica.degraded
            eventually(lambda: added.tile_uuid in {t.tile_uuid for t in held(replica, block)})


def test_a_reconnection_fetches_only_what_has_changed(database: str, short_directory: Path) -> None:
    block = Block()
    with DaemonProcess(short_directory, dsn=database) as daemon:
        bulk_insert(daemon.client, [tile(key) for key in block.keys(100)])
        with daemon.client.replica() as replica:
            follow(replica, block)
            before = dict(replica._state.blocks)
            changed: list[frozenset[BlockKey]] = []
            replica.on_change(changed.append)
            daemon.kill()
            daemon.start()
            replica.wait_until_synced(SYNC_S)
            assert changed == []
            assert replica._state.blocks == before

            key = block.key(50)
            insert(daemon.client, tile(key, "x", YESTERDAY + timedelta(hours=1)), 3)
            eventually(lambda: changed)
            assert changed == [{block_of(18, key.x, key.y)}]


def test_listeners_learn_of_changed_blocks_and_their_errors_end_nothing(
    client: TileCacheClient, replica: TileReplica, block: Block, caplog: Any
) -> None:
    follow(replica, block)
    changes: list[frozenset[BlockKey]] = []

    def fail(_: object) -> None:
        raise RuntimeError("of the listener")

    replica.on_change(fail)
    replica.on_change(changes.append)
    insert(client, tile(block.key(70)))

    eventually(lambda: changes)
    assert changes == [{block_of(18, block.x + 70, block.y)}]
    assert "of the listener" in caplog.text
    assert replica.best(18, block.x + 70, block.y)


def test_uses_are_recorded_in_the_background(
    client: TileCacheClient, sql: psycopg.Connection[Any], block: Block
) -> None:
    bulk_insert(client, [tile(key) for key in block.keys(4)])
    with client.replica() as replica:
        follow(replica, block)
        replica.cells(18, block.x, block.x, block.y, block.y)
        replica.cells(18, block.x + 1, block.x + 1, block.y, block.y, record_access=True)
        replica.best(18, block.x + 2, block.y, record_access=True)

    def used() -> list[int]:
        rows = sql.execute(
            "SELECT x FROM tiles WHERE y = %s AND x BETWEEN %s AND %s"
            " AND accessed_at IS NOT NULL ORDER BY x",
            [block.y, block.x, block.x + 3],
        )
        return [x for (x,) in rows]

    eventually(lambda: used() == [block.x + 1, block.x + 2])


def test_following_a_moving_position_asks_seldom_and_is_always_complete(
    client: TileCacheClient, replica: TileReplica, block: Block
) -> None:
    latitude, longitude = cell_centre(18, block.x, block.y)
    requests = set()
    step_degrees = 60 / 111_195  # a second at 60 m/s
    for second in range(120):
        here = latitude - second * step_degrees
        replica.follow(here, longitude, 1_000, (17, 18), velocity_mps=(-60, 0))
        requests.add(replica._circle)
        if second == 0:
            replica.wait_until_synced(SYNC_S)
        window = replica.around(here, longitude, 300, 18)
        assert window.complete or eventually(
            lambda here=here: replica.around(here, longitude, 300, 18).complete
        )
    # 7.2 km at a margin of 600 m, which is used on both sides.
    assert 5 <= len(requests) <= 9


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((91, 0, 10, (18,)), "latitude"),
        ((math.nan, 0, 10, (18,)), "latitude"),
        ((0, 181, 10, (18,)), "longitude"),
        ((0, 0, 0, (18,)), "radius_meters"),
        ((0, 0, 10, ()), "zooms"),
        ((0, 0, 10, (23,)), "zooms"),
    ],
)
def test_bad_arguments_are_named(
    replica: TileReplica, arguments: tuple[Any, ...], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        replica.follow(*arguments)


def test_too_large_an_area_is_refused_and_the_area_before_stays(
    client: TileCacheClient, replica: TileReplica, block: Block
) -> None:
    follow(replica, block)

    with pytest.raises(CallError, match="blocks of 32 x 32 cells, the daemon allows 1024"):
        replica.follow(0, 0, 120_000, (18,))

    assert replica.synced
    assert replica.cells(18, block.x, block.x, block.y, block.y).complete


def test_too_large_an_area_before_the_first_connection_ends_the_replica(
    database: str, short_directory: Path
) -> None:
    daemon = DaemonProcess(short_directory, dsn=database)
    with daemon.client.replica() as replica:
        replica.follow(0, 0, 120_000, (18,))
        with daemon:
            with pytest.raises(CallError) as refused:
                replica.wait_until_synced(SYNC_S)
            assert refused.value.reason == "LIMIT_EXCEEDED"
            for call in (
                lambda: replica.follow(0, 0, 10, (18,)),
                lambda: replica.around(0, 0, 10, 18),
                lambda: replica.best(18, 0, 0),
                lambda: replica.get("x"),
            ):
                with pytest.raises(CallError, match="the daemon allows 1024"):
                    call()


def test_more_tiles_than_the_replica_may_hold_end_it(client: TileCacheClient, block: Block) -> None:
    bulk_insert(client, [tile(key) for key in block.keys(20)])
    with client.replica(max_tiles=10) as replica:
        replica.follow_areas([WatchedArea(zoom=18, region=block.region)])
        with pytest.raises(CallError, match="has more than 10 tiles"):
            replica.wait_until_synced(SYNC_S)


def test_waiting_ends_with_the_time(short_directory: Path) -> None:
    with TileCacheClient(short_directory / "nobody.sock") as client, client.replica() as replica:
        replica.follow(0, 0, 10, (18,))
        with pytest.raises(CallError) as late:
            replica.wait_until_synced(0.05)
        assert late.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_many_threads_read_while_tiles_change(
    client: TileCacheClient, replica: TileReplica, block: Block
) -> None:
    """Each tile is as one write has left it, and a window has each cell once."""
    keys = list(block.keys(8, 8))
    bulk_insert(client, [tile(key, "0", file_path=f"{key.x}/{key.y}/0") for key in keys])
    follow(replica, block)
    stop, wrong = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            window = replica.cells(18, block.x, block.x + 7, block.y, block.y + 7)
            contents = {(each.key.x, each.key.y): each for each in window}
            if len(window) != 64 or len(contents) != 64:
                wrong.append(len(window))
            for each in window:
                version = each.file_path.rpartition("/")[2]
                if each.content_sha256 != tile(each.key, version).content_sha256:
                    wrong.append(each)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for version in range(1, 15):
        later = YESTERDAY + timedelta(minutes=version)
        newer = [
            tile(key, str(version), later, file_path=f"{key.x}/{key.y}/{version}") for key in keys
        ]
        bulk_insert(client, newer, on_conflict=ON_CONFLICT_REPLACE_IF_NEWER)
    eventually(lambda: all(each.file_path.endswith("/14") for each in held(replica, block)))
    stop.set()
    for reader in readers:
        reader.join()
    assert wrong == []


def test_touching_changes_no_replica(
    client: TileCacheClient, replica: TileReplica, block: Block
) -> None:
    stored = insert(client, tile(block.key())).tile
    follow(replica, block)
    changes: list[frozenset[BlockKey]] = []
    replica.on_change(changes.append)
    reference = TileRef(tile_uuid=stored.tile_uuid)
    client.store.TouchTiles(TouchTilesRequest(tiles=[reference]), timeout=TIMEOUT_S)
    insert(client, tile(block.key(40)))
    eventually(lambda: changes)
    assert changes == [{block_of(18, block.x + 40, block.y)}]
