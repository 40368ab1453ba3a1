"""The replica beside a daemon: what it holds is what a query returns."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from tests.tiles import (
    TIMEOUT_S,
    YESTERDAY,
    Block,
    bulk_insert,
    insert,
    tile,
)
from tests.waiting import eventually
from tilecache.client import TileCacheClient
from tilecache.mercator import cell_centre
from tilecache.replica import TileReplica
from tilecache.v1.tile_metadata_store_pb2 import (
    ON_CONFLICT_REPLACE_IF_NEWER,
    QueryTilesRequest,
    TileMetadata,
    WatchedArea,
)

SYNC_S = 10.0


@pytest.fixture
def replica(client: TileCacheClient) -> Iterator[TileReplica]:
    with client.replica() as replica:
        yield replica


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
