"""GetServerInfo, DeriveTileIdentity, GetTile, LookupTiles and TouchTiles."""

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import uuid4

import grpc
import psycopg
import pytest

from tests.tiles import (
    FLIGHT,
    ONBOARD,
    Block,
    bulk_insert,
    by_id,
    by_key,
    insert,
    location_hash,
    store_row,
    tile,
    tile_uuid,
)
from tests.waiting import eventually
from tilecache.client import TileCacheClient
from tilecache.errors import CallError
from tilecache.v1.tile_identity_pb2 import TileKey
from tilecache.v1.tile_metadata_store_pb2 import (
    DeriveTileIdentityRequest,
    DescribeCoverageRequest,
    GetServerInfoRequest,
    GetTileRequest,
    ListPendingUploadsRequest,
    LookupTilesRequest,
    QueryTilesRequest,
    TileRef,
    TouchTilesRequest,
)
from tilecache_daemon import __version__
from tilecache_daemon.schema.migrator import HEAD_REVISION


def accessed_at(client: TileCacheClient, key: TileKey) -> datetime | None:
    found = client.store.GetTile(GetTileRequest(tile=by_id(key)), timeout=60).tile
    if not found.HasField("accessed_at"):
        return None
    moment: datetime = found.accessed_at.ToDatetime(timezone.utc)
    return moment


def test_server_info_has_versions_limits_and_state(client: TileCacheClient) -> None:
    info = client.store.GetServerInfo(GetServerInfoRequest(), timeout=60)
    assert info.contract_version.startswith("1.")
    assert info.daemon_version == __version__
    assert info.schema_revision == HEAD_REVISION
    assert info.namespace_uuid == "5b8d0c2e-1a4f-4b3a-8c9d-e7f6a3b2c1d0"
    assert all(value > 0 for _, value in info.limits.ListFields())
    assert len(info.limits.ListFields()) == len(info.limits.DESCRIPTOR.fields)
    assert info.clock.trusted
    assert info.clock.reason == ""
    assert abs(info.clock.time.ToDatetime(timezone.utc) - datetime.now(timezone.utc)) < timedelta(
        minutes=1
    )
    assert info.database_available
    assert info.access_loss_bound.ToMilliseconds() == 60_050


def test_ids_are_derived_in_order(client: TileCacheClient) -> None:
    keys = [
        TileKey(zoom=18, x=154321, y=95812, source="TILE_SOURCE_GOOGLEMAPS"),
        TileKey(zoom=18, x=154321, y=95812, source="TILE_SOURCE_ONBOARD_INGEST", flight_id=FLIGHT),
        TileKey(zoom=0, source="TILE_SOURCE_GOOGLEMAPS"),
    ]
    answer = client.store.DeriveTileIdentity(DeriveTileIdentityRequest(keys=keys), timeout=60)
    assert [(item.tile_uuid, item.location_hash) for item in answer.identities] == [
        ("17f7ac7e-6c25-5050-a7cd-b6578cd5f323", "8d180ffb-bd42-5cb4-a4d6-628829b798b6"),
        ("888b449f-12f1-5b22-a9a4-b78bfbb4a300", "8d180ffb-bd42-5cb4-a4d6-628829b798b6"),
        ("9592538c-5702-5dbb-b274-193c82925556", "e59149ef-664b-5559-a13c-435133448c28"),
    ]


@pytest.mark.parametrize("refer", [by_id, by_key])
def test_a_tile_is_found_by_its_id_and_by_its_key(
    client: TileCacheClient, block: Block, refer: Callable[[TileKey], TileRef]
) -> None:
    key = block.key(source=ONBOARD, flight_id=FLIGHT)
    inserted = insert(client, tile(key)).tile
    assert client.store.GetTile(GetTileRequest(tile=refer(key)), timeout=60).tile == inserted


@pytest.mark.parametrize("refer", [by_id, by_key])
def test_an_unknown_tile_is_not_found(
    client: TileCacheClient, block: Block, refer: Callable[[TileKey], TileRef]
) -> None:
    with pytest.raises(CallError) as caught:
        client.store.GetTile(GetTileRequest(tile=refer(block.key())), timeout=60)
    assert caught.value.code is grpc.StatusCode.NOT_FOUND
    assert caught.value.reason == "TILE_NOT_FOUND"
    assert caught.value.facts == {"tile_uuid": tile_uuid(block.key())}


def test_lookup_results_are_in_the_requested_order_with_misses(
    client: TileCacheClient, block: Block
) -> None:
    keys = list(block.keys(40))
    bulk_insert(client, [tile(key) for key in keys[::2]])
    refs = [refer(key) for key in reversed(keys) for refer in (by_id, by_key)]
    refs.insert(7, TileRef(tile_uuid=str(uuid4())))
    refs.append(refs[2])
    results = client.store.LookupTiles(LookupTilesRequest(tiles=refs), timeout=60).results
    expected = ["" if i % 2 else tile_uuid(key) for i, key in enumerate(keys)]
    expected = [text for text in reversed(expected) for _ in range(2)]
    expected.insert(7, "")
    expected.append(expected[2])
    assert [result.tile.tile_uuid for result in results] == expected
    assert [result.HasField("tile") for result in results] == [bool(text) for text in expected]


def test_a_lookup_accepts_the_maximum_number_of_items(
    client: TileCacheClient, block: Block
) -> None:
    keys = [block.key(i % 100, i // 100) for i in range(4_096)]
    bulk_insert(client, [tile(key) for key in keys])
    request = LookupTilesRequest(tiles=map(by_key, keys))
    results = client.store.LookupTiles(request, timeout=60).results
    assert [result.tile.tile_uuid for result in results] == list(map(tile_uuid, keys))


def test_a_lookup_with_too_large_an_answer_is_refused(
    client: TileCacheClient, block: Block
) -> None:
    key = block.key()
    insert(client, tile(key, file_path="x" * 512, quality_metadata={"a": "x" * 2_000}))
    with pytest.raises(CallError) as caught:
        client.store.LookupTiles(LookupTilesRequest(tiles=[by_key(key)] * 4_096), timeout=60)
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.reason == "LIMIT_EXCEEDED"
    assert caught.value.violations[0].field == "tiles"


def get(client: TileCacheClient, key: TileKey) -> Any:
    request = GetTileRequest(tile=by_key(key), record_access=True)
    return client.store.GetTile(request, timeout=60)


def look_up(client: TileCacheClient, key: TileKey) -> Any:
    request = LookupTilesRequest(tiles=[by_key(key)], record_access=True)
    return client.store.LookupTiles(request, timeout=60)


def touch(client: TileCacheClient, *keys: TileKey) -> list[bool]:
    request = TouchTilesRequest(tiles=map(by_key, keys))
    return list(client.store.TouchTiles(request, timeout=60).recorded)


@pytest.mark.parametrize("use", [get, look_up, touch])
def test_a_recorded_access_is_written(
    client: TileCacheClient, block: Block, use: Callable[[TileCacheClient, TileKey], Any]
) -> None:
    key = block.key()
    insert(client, tile(key))
    before = datetime.now(timezone.utc)
    use(client, key)
    after = datetime.now(timezone.utc)
    written = eventually(lambda: accessed_at(client, key))
    assert before <= written <= after


def test_other_calls_record_no_access(client: TileCacheClient, block: Block) -> None:
    quiet, loud = block.key(0), block.key(1)
    bulk_insert(client, [tile(quiet), tile(loud)])
    insert(client, tile(quiet))
    client.store.GetTile(GetTileRequest(tile=by_key(quiet)), timeout=60)
    client.store.LookupTiles(LookupTilesRequest(tiles=[by_key(quiet)]), timeout=60)
    list(
        client.store.QueryTiles(QueryTilesRequest(zoom=block.zoom, region=block.region), timeout=60)
    )
    list(
        client.store.DescribeCoverage(
            DescribeCoverageRequest(zoom=block.zoom, region=block.region), timeout=60
        )
    )
    client.store.ListPendingUploads(ListPendingUploadsRequest(), timeout=60)
    touch(client, loud)
    eventually(lambda: accessed_at(client, loud))
    assert accessed_at(client, quiet) is None


def test_touch_returns_which_tiles_exist(client: TileCacheClient, block: Block) -> None:
    first, missing, second = block.keys(3)
    bulk_insert(client, [tile(first), tile(second)])
    assert touch(client, first, missing, second, first) == [True, False, True, True]
    eventually(lambda: accessed_at(client, first) and accessed_at(client, second))
    with pytest.raises(CallError, match="there is no tile"):
        accessed_at(client, missing)


def test_an_access_soon_after_a_written_one_is_not_written(
    client: TileCacheClient, block: Block
) -> None:
    first, second = block.keys(2)
    bulk_insert(client, [tile(first), tile(second)])
    touch(client, first)
    written = eventually(lambda: accessed_at(client, first))
    touch(client, first)
    touch(client, second)
    eventually(lambda: accessed_at(client, second))
    assert accessed_at(client, first) == written


def test_an_access_long_after_a_written_one_is_written(
    client: TileCacheClient, block: Block, sql: psycopg.Connection[Any]
) -> None:
    key = block.key()
    long_ago = datetime.now(timezone.utc) - timedelta(seconds=61)
    store_row(sql, key, accessed_at=long_ago)
    touch(client, key)
    eventually(lambda: accessed_at(client, key) != long_ago)


def test_accesses_are_written_in_order(
    client: TileCacheClient, block: Block, sql: psycopg.Connection[Any]
) -> None:
    keys = list(block.keys(30))
    bulk_insert(client, [tile(key) for key in keys])
    order = keys[::-3] + keys[1::2]
    touch(client, *order)
    last_use = {tile_uuid(key): position for position, key in enumerate(order)}
    used = sorted(last_use, key=lambda text: last_use[text])
    eventually(lambda: all(accessed_at(client, key) for key in order))
    rows = sql.execute(
        "SELECT tile_uuid::text FROM tiles WHERE tile_uuid = ANY(%s::uuid[]) ORDER BY access_order",
        [used],
    ).fetchall()
    assert [text for (text,) in rows] == used


def test_the_access_of_a_locked_tile_is_written_later(
    client: TileCacheClient, block: Block, sql: psycopg.Connection[Any]
) -> None:
    locked, free = block.keys(2)
    bulk_insert(client, [tile(locked), tile(free)])
    with sql.transaction():
        sql.execute("SELECT FROM tiles WHERE tile_uuid = %s FOR UPDATE", [tile_uuid(locked)])
        touch(client, locked, free)
        eventually(lambda: accessed_at(client, free))
        assert accessed_at(client, locked) is None
    eventually(lambda: accessed_at(client, locked))


def test_a_tile_has_its_location_hash(client: TileCacheClient, block: Block) -> None:
    insert(client, tile(block.key(), location_hash=location_hash(block.key())))
    found = client.store.GetTile(GetTileRequest(tile=by_key(block.key())), timeout=60).tile
    assert found.location_hash == location_hash(block.key())
