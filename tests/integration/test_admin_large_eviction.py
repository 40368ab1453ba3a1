"""100,000 of 1,000,000 tiles are evicted, and reads are answered meanwhile."""

from collections import Counter
from pathlib import Path
from typing import Any

import psycopg

from tests.admin import read_usage
from tests.daemon_process import DaemonProcess
from tests.filling import fill_without_upkeep
from tests.tiles import cell_region
from tilecache.client import TileCacheClient
from tilecache.v1.tile_cache_admin_pb2 import EvictTilesRequest
from tilecache.v1.tile_metadata_store_pb2 import (
    GetTileRequest,
    LookupTilesRequest,
    QueryTilesRequest,
    TileRef,
)
from tilecache_daemon.service.eviction import BATCH_TILES

TILES = 1_000_000
EVICTED = 100_000
DISK_BYTES = 10_000
PATIENCE_S = 120


def test_reads_are_answered_while_100_000_of_1_000_000_tiles_are_evicted(
    database: str, short_directory: Path
) -> None:
    with psycopg.connect(database, autocommit=True) as sql:
        fill_without_upkeep(sql, TILES, disk_bytes=DISK_BYTES)
        used_last = read_ids(sql, TILES - 5_000)
        with DaemonProcess(short_directory, dsn=database) as daemon:
            request = EvictTilesRequest(free_bytes=EVICTED * DISK_BYTES)
            answers = daemon.admin_client.admin.EvictTiles(request, timeout=PATIENCE_S)
            evicted, batches = 0, 0
            for answer in answers:
                evicted += len(answer.tiles)
                batches += 1
                if evicted < EVICTED:
                    read(daemon.client, used_last[batches::500])

            assert answer.summary.goal_met
            assert answer.summary.evicted_count == evicted == EVICTED
            assert batches > EVICTED / BATCH_TILES, "there were reads between the batches"
            assert read_usage(daemon.admin_client).total.tile_count == TILES - EVICTED
        assert max(rows_of_transactions(sql).values()) <= BATCH_TILES


def read_ids(sql: psycopg.Connection[Any], first: int) -> list[str]:
    rows = sql.execute(
        "SELECT tile_uuid::text FROM tiles WHERE access_order > %s ORDER BY access_order", [first]
    )
    return [tile_uuid for (tile_uuid,) in rows.fetchall()]


def read(client: TileCacheClient, tile_uuids: list[str]) -> None:
    """Reads by id, by many ids and by region; all must be answered."""
    refs = [TileRef(tile_uuid=tile_uuid) for tile_uuid in tile_uuids]
    assert client.store.GetTile(GetTileRequest(tile=refs[0]), timeout=PATIENCE_S).HasField("tile")
    results = client.store.LookupTiles(LookupTilesRequest(tiles=refs), timeout=PATIENCE_S).results
    assert all(result.HasField("tile") for result in results)
    request = QueryTilesRequest(zoom=20, region=cell_region(0, 9, 940, 949))
    found = client.store.QueryTiles(request, timeout=PATIENCE_S)
    assert sum(len(answer.tiles) for answer in found) == 100


def rows_of_transactions(sql: psycopg.Connection[Any]) -> Counter[str]:
    """How many tiles each transaction evicted."""
    rows = sql.execute("SELECT xmin::text, count(*) FROM tile_evictions GROUP BY xmin::text")
    return Counter(dict(rows.fetchall()))
