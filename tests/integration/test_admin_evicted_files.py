"""Files that are listed for removal cannot be stored again."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import grpc
import psycopg
import pytest

from tests.admin import confirm, delete, evict, list_evictions, read_usage
from tests.tiles import (
    NOW,
    Block,
    bulk_insert,
    insert,
    is_stored,
    sha256,
    tile,
)
from tilecache.client import TileCacheClient
from tilecache.errors import CallError
from tilecache.v1.tile_cache_admin_pb2 import (
    EVICTION_REASON_REPLACED,
)
from tilecache.v1.tile_metadata_store_pb2 import (
    ON_CONFLICT_REPLACE_IF_NEWER,
)

ROWS_WHOSE_FILE_IS_LISTED = "SELECT count(*) FROM tiles JOIN tile_evictions USING (file_path)"


def test_a_listed_file_cannot_be_stored_until_its_removal_is_confirmed(
    admin: TileCacheClient, block: Block
) -> None:
    again, other = tile(block.key(), disk_bytes=100), tile(block.key(1), disk_bytes=100)
    insert(admin, again)
    (evicted,) = evict(admin, free_bytes=1).tiles

    with pytest.raises(CallError) as refusal:
        insert(admin, again)
    (answer,) = bulk_insert(admin, [other, again])

    assert refusal.value.code is grpc.StatusCode.FAILED_PRECONDITION
    assert refusal.value.reason == "FILE_PENDING_REMOVAL"
    assert refusal.value.facts == {"file_path": again.file_path}
    assert answer.inserted_count == 1
    assert [(each.index, each.reason) for each in answer.refused] == [(1, "FILE_PENDING_REMOVAL")]
    assert read_usage(admin).total.tile_count == 1

    confirm(admin, [evicted.eviction_id])
    insert(admin, again)
    assert is_stored(admin, block.key())


def test_an_evicted_tile_can_be_stored_with_another_file(
    admin: TileCacheClient, block: Block
) -> None:
    insert(admin, tile(block.key(), disk_bytes=100))
    evict(admin, free_bytes=1)

    insert(admin, tile(block.key(), disk_bytes=100, file_path="other.jpg"))

    assert is_stored(admin, block.key())
    assert [each.file_path for each in list_evictions(admin)] == [tile(block.key()).file_path]


def test_the_file_of_a_replaced_tile_is_listed(admin: TileCacheClient, block: Block) -> None:
    insert(admin, tile(block.key(), "old", disk_bytes=10, file_path="old.jpg"))

    newer = tile(block.key(), "newer", NOW, disk_bytes=20, file_path="newer.jpg")
    insert(admin, newer, ON_CONFLICT_REPLACE_IF_NEWER)

    (listed,) = list_evictions(admin)
    assert listed.reason == EVICTION_REASON_REPLACED
    assert (listed.file_path, listed.content_sha256) == ("old.jpg", sha256("old"))
    assert is_stored(admin, block.key())


def test_a_replacement_with_the_same_path_lists_nothing(
    admin: TileCacheClient, block: Block
) -> None:
    insert(admin, tile(block.key(), "old"))

    insert(admin, tile(block.key(), "newer", NOW), ON_CONFLICT_REPLACE_IF_NEWER)

    assert list(list_evictions(admin)) == []


def test_a_replacement_cannot_use_a_listed_file(admin: TileCacheClient, block: Block) -> None:
    insert(admin, tile(block.key(0), disk_bytes=10, file_path="listed.jpg"))
    evict(admin, free_bytes=1)
    insert(admin, tile(block.key(1), "old"))

    newer = tile(block.key(1), "newer", NOW + timedelta(seconds=1), file_path="listed.jpg")
    with pytest.raises(CallError) as refusal:
        insert(admin, newer, ON_CONFLICT_REPLACE_IF_NEWER)

    assert refusal.value.reason == "FILE_PENDING_REMOVAL"


def test_no_row_ever_has_a_listed_file(
    admin: TileCacheClient, sql: psycopg.Connection[Any], block: Block
) -> None:
    """Inserts, evictions, deletions and confirmations of the same tiles run concurrently."""
    tiles = [tile(block.key(i % 20, i // 20), disk_bytes=100) for i in range(100)]
    done = threading.Event()

    def write(part: int) -> int:
        stored = 0
        for _ in range(12):
            (answer,) = bulk_insert(admin, tiles[part::2] if part < 2 else tiles)
            reasons = {each.reason for each in answer.refused}
            assert reasons <= {"FILE_PENDING_REMOVAL"}
            stored += answer.inserted_count
        return stored

    def remove(kind: int) -> int:
        removed = 0
        while not done.is_set():
            if kind == 0:
                removed += len(evict(admin, max_used_bytes=3_000).tiles)
            elif kind == 1:
                removed += len(delete(admin, region=block.region, zooms=[block.zoom]).tiles)
            else:
                listed = [each.eviction_id for each in list_evictions(admin)]
                removed += sum(confirm(admin, listed)) if listed else 0
        return removed

    with ThreadPoolExecutor(6) as pool:
        removing = [pool.submit(remove, kind) for kind in range(3)]
        writing = [pool.submit(write, part) for part in range(3)]
        try:
            while not all(each.done() for each in writing):
                assert sql.execute(ROWS_WHOSE_FILE_IS_LISTED).fetchone() == (0,)
        finally:
            done.set()

    assert sql.execute(ROWS_WHOSE_FILE_IS_LISTED).fetchone() == (0,)
    usage = read_usage(admin)
    stored = sum(each.result() for each in writing)
    evicted, deleted, confirmed = (each.result() for each in removing)
    assert min(evicted, deleted, confirmed) > 0
    assert stored == usage.total.tile_count + evicted + deleted
    assert evicted + deleted == usage.pending_removal.tile_count + confirmed
