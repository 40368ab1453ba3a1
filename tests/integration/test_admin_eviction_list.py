"""ListEvictions and ConfirmEvictions."""

from typing import Any

import grpc
import psycopg
import pytest

from tests.admin import confirm, delete, evict, list_evictions, touch
from tests.filling import fill
from tests.tiles import (
    TIMEOUT_S,
    Block,
    by_key,
    insert,
    key_name,
    store_tiles,
    tile,
    tile_uuid,
)
from tilecache.client import TileCacheClient
from tilecache.errors import CallError
from tilecache.v1.tile_cache_admin_pb2 import (
    EVICTION_REASON_DELETED,
    EVICTION_REASON_EVICTED,
    EvictTilesRequest,
    ListEvictionsRequest,
)
from tilecache.v1.tile_metadata_store_pb2 import (
    GetTileRequest,
)


def test_an_evicted_tile_is_listed_with_all_fields(admin: TileCacheClient, block: Block) -> None:
    key = block.key(3, 4)
    stored = insert(admin, tile(key, disk_bytes=77, file_path="a/b c.jpg")).tile
    touch(admin, key)

    (evicted,) = evict(admin, free_bytes=1).tiles
    (listed,) = list_evictions(admin)

    assert listed == evicted
    assert listed.eviction_id > 0
    assert (listed.tile_uuid, key_name(listed.key)) == (stored.tile_uuid, key_name(key))
    assert (listed.file_path, listed.disk_bytes) == ("a/b c.jpg", 77)
    assert listed.content_sha256 == stored.content_sha256
    assert listed.reason == EVICTION_REASON_EVICTED
    assert stored.created_at.ToNanoseconds() <= listed.accessed_at.ToNanoseconds()
    assert listed.accessed_at.ToNanoseconds() <= listed.evicted_at.ToNanoseconds()
    with pytest.raises(CallError) as miss:
        admin.store.GetTile(GetTileRequest(tile=by_key(key)), timeout=TIMEOUT_S)
    assert miss.value.code is grpc.StatusCode.NOT_FOUND


def test_an_eviction_is_listed_until_it_is_confirmed(admin: TileCacheClient, block: Block) -> None:
    store_tiles(admin, block, 3)
    first, second, third = (each.eviction_id for each in evict(admin, free_bytes=300).tiles)

    assert confirm(admin, [third, 2**62, first, first]) == [True, False, True, True]

    assert [each.eviction_id for each in list_evictions(admin)] == [second]
    assert confirm(admin, [first, second]) == [False, True]


@pytest.mark.parametrize("ids", [[0], [5, -1]])
def test_an_invalid_eviction_id_is_refused(admin: TileCacheClient, ids: list[int]) -> None:
    with pytest.raises(CallError) as refusal:
        confirm(admin, ids)

    assert [each.field for each in refusal.value.violations] == [f"eviction_ids[{len(ids) - 1}]"]


def test_pages_are_stable_while_evictions_are_added_and_confirmed(
    admin: TileCacheClient, block: Block
) -> None:
    store_tiles(admin, block, 30)
    evicted = [each.eviction_id for each in evict(admin, free_bytes=2_000).tiles]
    seen: list[int] = []
    token, confirmed = "", evicted[1::2]
    while True:
        page = admin.admin.ListEvictions(
            ListEvictionsRequest(page_size=3, page_token=token), timeout=TIMEOUT_S
        )
        seen += [each.eviction_id for each in page.tiles]
        if confirmed:
            confirm(admin, [confirmed.pop(0)])
        evict(admin, free_bytes=100)
        token = page.next_page_token
        if not token:
            break

    assert seen == sorted(set(seen))
    assert set(evicted[0::2]) <= set(seen), "evictions that were listed all the time were seen"


@pytest.mark.parametrize("token", ["x", "-1", "1.5", "9" * 19, "\N{ARABIC-INDIC DIGIT ONE}"])
def test_an_invalid_page_token_is_refused(admin: TileCacheClient, token: str) -> None:
    with pytest.raises(CallError) as refusal:
        admin.admin.ListEvictions(ListEvictionsRequest(page_token=token), timeout=TIMEOUT_S)

    assert [each.field for each in refusal.value.violations] == ["page_token"]


def test_the_evictions_of_some_files_are_listed(admin: TileCacheClient, block: Block) -> None:
    store_tiles(admin, block, 5)
    paths = [each.file_path for each in evict(admin, max_used_bytes=0).tiles]
    wanted = [paths[3], paths[1], "not there.jpg"]
    request = ListEvictionsRequest(file_paths=wanted, page_size=1)

    first = admin.admin.ListEvictions(request, timeout=TIMEOUT_S)
    request.page_token = first.next_page_token
    second = admin.admin.ListEvictions(request, timeout=TIMEOUT_S)

    assert [each.file_path for each in first.tiles] == [paths[1]]
    assert [each.file_path for each in second.tiles] == [paths[3]]
    assert second.next_page_token == ""


def test_a_zero_byte_in_a_file_path_is_refused(admin: TileCacheClient) -> None:
    with pytest.raises(CallError) as refusal:
        admin.admin.ListEvictions(ListEvictionsRequest(file_paths=["a\0"]), timeout=TIMEOUT_S)

    assert [each.field for each in refusal.value.violations] == ["file_paths[0]"]


def test_a_deleted_tile_is_listed_like_an_evicted_one(admin: TileCacheClient, block: Block) -> None:
    store_tiles(admin, block, 2)

    delete(admin, tile_uuids=[tile_uuid(block.key(1))])

    (listed,) = list_evictions(admin)
    assert listed.reason == EVICTION_REASON_DELETED
    assert key_name(listed.key) == key_name(block.key(1))


def test_after_a_cancelled_eviction_its_tiles_are_listed(
    admin: TileCacheClient, sql: psycopg.Connection[Any]
) -> None:
    fill(sql, 30_000, disk_bytes=10)
    answers = admin.admin.EvictTiles(EvictTilesRequest(max_used_bytes=0), timeout=TIMEOUT_S)
    received = {each.eviction_id for each in next(answers).tiles}
    answers.cancel()

    again = evict(admin, max_used_bytes=0)

    assert again.summary.goal_met
    listed = {each.eviction_id for each in list_evictions(admin)}
    assert received <= listed
    assert len(listed) == 30_000
