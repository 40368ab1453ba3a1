"""A row of another program with a time that no calendar has costs nothing but that time.

The triggers of revision 0007 keep such rows out; a row from before, or one that was written with
the triggers disabled, may have one.
"""

from datetime import datetime, timezone
from typing import Any

import psycopg
import pytest

from tests.admin import (
    ACTIVE_CONFLICT,
    delete,
    evict,
    explain,
    list_evictions,
    reevaluate,
    set_sector,
)
from tests.tiles import (
    FLIGHT,
    ONBOARD,
    TIMEOUT_S,
    Block,
    by_id,
    insert,
    sha256,
    store_row,
    tile,
    tile_uuid,
)
from tilecache.client import TileCacheClient
from tilecache.v1.tile_identity_pb2 import TileKey
from tilecache.v1.tile_metadata_store_pb2 import (
    FreshnessLabel,
    GetTileRequest,
    ListPendingUploadsRequest,
    MarkUploadedRequest,
    QueryTilesRequest,
    UploadedTile,
)

FIRST = datetime(1, 1, 1, tzinfo=timezone.utc)
LAST = datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=timezone.utc)
TIMES = {
    "infinity": LAST,
    "-infinity": FIRST,
    "4713-01-01 00:00:00+00 BC": FIRST,
    "294276-12-31 00:00:00+00": LAST,
}
EVERY_LABEL = [number for number in FreshnessLabel.values() if number]


@pytest.fixture(params=TIMES)
def odd(
    request: pytest.FixtureRequest,
    admin: TileCacheClient,
    sql: psycopg.Connection[Any],
    block: Block,
) -> TileKey:
    """An onboard tile all of whose times are odd, between two others."""
    keys = [block.key(column, source=ONBOARD, flight_id=FLIGHT) for column in range(3)]
    insert(admin, tile(keys[0]))
    sql.execute("SET session_replication_role = replica")
    times = dict.fromkeys(("captured_at", "created_at", "accessed_at"), request.param)
    store_row(sql, keys[1], disk_bytes=1, content_sha256=sha256("odd"), **times)
    sql.execute("SET session_replication_role = origin")
    sql.execute("INSERT INTO tile_usage SELECT 18, 'onboard_ingest', 'fresh', true, 1, 1, 0")
    insert(admin, tile(keys[2]))
    return keys[1]


def expected(odd: TileKey, request: pytest.FixtureRequest) -> datetime:
    return TIMES[request.node.callspec.params["odd"]]


def test_it_is_read_with_the_nearest_time(
    admin: TileCacheClient, odd: TileKey, block: Block, request: pytest.FixtureRequest
) -> None:
    query = QueryTilesRequest(zoom=block.zoom, region=block.region, labels=EVERY_LABEL)
    found = {
        each.tile_uuid: each
        for answer in admin.store.QueryTiles(query, timeout=TIMEOUT_S)
        for each in answer.tiles
    }
    assert len(found) == 3
    one = admin.store.GetTile(GetTileRequest(tile=by_id(odd)), timeout=TIMEOUT_S).tile
    for each in (found[tile_uuid(odd)], one):
        assert each.captured_at.ToDatetime(timezone.utc) == expected(odd, request)
        assert each.created_at.ToDatetime(timezone.utc) == expected(odd, request)


def test_its_label_is_explained_and_all_are_evaluated(admin: TileCacheClient, odd: TileKey) -> None:
    set_sector(admin, "everywhere", ACTIVE_CONFLICT, (-85.0, -180.0, 85.0, 180.0))
    reevaluate(admin)
    answer = explain(admin, odd)
    assert answer.stored_label == answer.current_label


def test_uploads_are_listed_page_by_page_and_marked(admin: TileCacheClient, odd: TileKey) -> None:
    listed, token = [], ""
    for _ in range(4):
        page = admin.store.ListPendingUploads(
            ListPendingUploadsRequest(page_size=1, page_token=token), timeout=TIMEOUT_S
        )
        listed += [each.tile_uuid for each in page.tiles]
        token = page.next_page_token
        if not token:
            break
    assert len(listed) == len(set(listed)) == 3
    assert token == ""
    mark = UploadedTile(tile_uuid=tile_uuid(odd), content_sha256=sha256("odd"))
    for _ in range(2):
        admin.store.MarkUploaded(MarkUploadedRequest(tiles=[mark]), timeout=TIMEOUT_S)


@pytest.mark.parametrize("dry_run", [True, False])
def test_it_is_evicted_with_the_others(admin: TileCacheClient, odd: TileKey, dry_run: bool) -> None:
    went = evict(admin, max_used_bytes=0, include_pending_uploads=True, dry_run=dry_run)
    assert len(went.tiles) == 3
    assert len(list(list_evictions(admin))) == (0 if dry_run else 3)


@pytest.mark.parametrize("dry_run", [True, False])
def test_it_is_purged_with_the_others(admin: TileCacheClient, odd: TileKey, dry_run: bool) -> None:
    went = delete(admin, sources=[ONBOARD], include_pending_uploads=True, dry_run=dry_run)
    assert len(went.tiles) == 3
