"""EvictTiles, ListEvictions and ConfirmEvictions, over the socket."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from tilecache.v1.tile_cache_admin_pb2 import (
    EVICTION_REASON_DELETED,
    EVICTION_REASON_EVICTED,
    EVICTION_REASON_REPLACED,
    EVICTION_STOP_EMPTY,
    EVICTION_STOP_GOAL_MET,
    EVICTION_STOP_PENDING_UPLOADS,
    EvictedTile,
    EvictTilesRequest,
    ListEvictionsRequest,
)
from tilecache.v1.tile_identity_pb2 import TileKey
from tilecache.v1.tile_metadata_store_pb2 import (
    ON_CONFLICT_REPLACE_IF_NEWER,
    GetTileRequest,
    LookupTilesRequest,
    MarkUploadedRequest,
    UploadedTile,
)

from tests.admin import confirm, delete, evict, list_evictions, read_usage, touch
from tests.daemon_process import DaemonProcess
from tests.filling import fill
from tests.tiles import (
    NOW,
    ONBOARD,
    TIMEOUT_S,
    Block,
    bulk_insert,
    by_key,
    insert,
    key_name,
    sha256,
    store_row,
    tile,
    tile_uuid,
)
from tilecache_daemon.client import CallError, TileCacheClient
from tilecache_daemon.service.eviction import BATCH_TILES

ROWS_WHOSE_FILE_IS_LISTED = "SELECT count(*) FROM tiles JOIN tile_evictions USING (file_path)"


def store(admin: TileCacheClient, block: Block, count: int, disk_bytes: int = 100) -> list[TileKey]:
    """Tiles, the first of which is the least recently used."""
    keys = [block.key(number % 100, number // 100) for number in range(count)]
    (answer,) = bulk_insert(admin, [tile(key, disk_bytes=disk_bytes) for key in keys])
    assert answer.inserted_count == count
    return keys


def names(keys: Iterator[TileKey] | list[TileKey]) -> list[tuple[int, int, int, int, str]]:
    return [key_name(key) for key in keys]


def gone(tiles: list[EvictedTile]) -> list[tuple[int, int, int, int, str]]:
    return [key_name(each.key) for each in tiles]


def exists(client: TileCacheClient, key: TileKey) -> bool:
    (result,) = client.store.LookupTiles(
        LookupTilesRequest(tiles=[by_key(key)]), timeout=TIMEOUT_S
    ).results
    return result.HasField("tile")


def test_the_least_recently_used_go_first(admin: TileCacheClient, block: Block) -> None:
    keys = store(admin, block, 5)
    touch(admin, keys[3], keys[0])

    went = evict(admin, free_bytes=300)

    assert gone(went.tiles) == names([keys[1], keys[2], keys[4]])
    assert [exists(admin, key) for key in keys] == [True, False, False, True, False]


def test_a_use_that_is_not_written_yet_counts(
    database: str, short_directory: Path, block: Block
) -> None:
    with DaemonProcess(short_directory, dsn=database, access_flush_interval_s=3600) as daemon:
        keys = store(daemon.admin_client, block, 3)
        touch(daemon.client, keys[1], keys[0])

        went = evict(daemon.admin_client, free_bytes=200)

        assert gone(went.tiles) == names([keys[2], keys[1]])


def test_no_more_goes_than_the_goal_needs(admin: TileCacheClient, block: Block) -> None:
    keys = store(admin, block, 10)

    went = evict(admin, free_bytes=201)

    assert gone(went.tiles) == names(keys[:3])
    assert went.summary.goal_met
    assert went.summary.stop == EVICTION_STOP_GOAL_MET
    assert (went.summary.evicted_count, went.summary.freed_bytes) == (3, 300)
    assert went.summary.used_bytes == read_usage(admin).total.used_bytes == 700


def test_a_ceiling_is_a_ceiling(admin: TileCacheClient, block: Block) -> None:
    keys = store(admin, block, 10)

    went = evict(admin, max_used_bytes=450)

    assert gone(went.tiles) == names(keys[:6])
    assert went.summary.goal_met
    assert read_usage(admin).total.used_bytes == went.summary.used_bytes == 400


def test_a_ceiling_that_holds_already_evicts_nothing(admin: TileCacheClient, block: Block) -> None:
    store(admin, block, 3)

    went = evict(admin, max_used_bytes=300)

    assert went.tiles == []
    assert went.summary.goal_met
    assert went.summary.used_bytes == 300


def test_a_ceiling_of_nothing_takes_all(admin: TileCacheClient, block: Block) -> None:
    store(admin, block, 3)

    assert evict(admin, max_used_bytes=0).summary.evicted_count == 3


@pytest.mark.parametrize(
    "goal", [{"free_bytes": 450}, {"max_used_bytes": 450}, {"free_bytes": 5_000}]
)
@pytest.mark.parametrize("include_pending_uploads", [False, True])
def test_a_dry_run_says_exactly_what_a_run_does(
    admin: TileCacheClient,
    block: Block,
    sql: psycopg.Connection[Any],
    goal: dict[str, int],
    include_pending_uploads: bool,
) -> None:
    keys = store(admin, block, 6)
    bulk_insert(admin, [tile(block.key(i, 1, ONBOARD), disk_bytes=70) for i in range(6)])
    store_row(sql, block.key(0, 2), file_path="unknown-size.jpg")
    touch(admin, keys[0], keys[4])
    request: dict[str, Any] = {**goal, "include_pending_uploads": include_pending_uploads}

    before = read_usage(admin)
    told = evict(admin, **request, dry_run=True)
    assert read_usage(admin) == before
    assert list(list_evictions(admin)) == []
    done = evict(admin, **request)

    assert told.tiles
    assert told.summary.dry_run
    assert not done.summary.dry_run
    told.summary.dry_run = False
    assert told.summary == done.summary
    assert [facts(each) for each in told.tiles] == [facts(each) for each in done.tiles]
    assert {each.eviction_id for each in told.tiles} == {0}


def facts(evicted: EvictedTile) -> EvictedTile:
    """All but what only a run can give."""
    rest = EvictedTile()
    rest.CopyFrom(evicted)
    rest.ClearField("eviction_id")
    rest.ClearField("evicted_at")
    return rest


def test_a_dry_run_of_several_batches_says_what_a_run_does(
    admin: TileCacheClient, sql: psycopg.Connection[Any]
) -> None:
    fill(sql, BATCH_TILES * 2 + 500, disk_bytes=10)
    goal = {"max_used_bytes": 10 * 100}

    told, done = evict(admin, **goal, dry_run=True), evict(admin, **goal)

    assert told.summary.evicted_count == len(done.tiles) == BATCH_TILES * 2 + 400
    assert [each.tile_uuid for each in told.tiles] == [each.tile_uuid for each in done.tiles]


def test_tiles_that_wait_for_upload_stay_and_are_told(admin: TileCacheClient, block: Block) -> None:
    bulk_insert(admin, [tile(block.key(i, 0, ONBOARD), disk_bytes=100) for i in range(3)])
    keys = store(admin, Block(), 2)
    uploaded = UploadedTile(
        tile_uuid=tile_uuid(block.key(1, 0, ONBOARD)), content_sha256=sha256("picture")
    )
    admin.store.MarkUploaded(MarkUploadedRequest(tiles=[uploaded]), timeout=TIMEOUT_S)

    went = evict(admin, max_used_bytes=0)

    assert gone(went.tiles) == names([block.key(1, 0, ONBOARD), *keys])
    assert not went.summary.goal_met
    assert went.summary.stop == EVICTION_STOP_PENDING_UPLOADS
    assert went.summary.pending_upload_count == 2


def test_tiles_that_wait_for_upload_go_when_told_so(admin: TileCacheClient, block: Block) -> None:
    insert(admin, tile(block.key(0, 0, ONBOARD), disk_bytes=100))

    went = evict(admin, free_bytes=1, include_pending_uploads=True)

    assert gone(went.tiles) == names([block.key(0, 0, ONBOARD)])
    assert went.summary.goal_met


def test_what_frees_nothing_stays(
    admin: TileCacheClient, sql: psycopg.Connection[Any], block: Block
) -> None:
    insert(admin, tile(block.key(0), disk_bytes=0))
    store_row(sql, block.key(1))

    went = evict(admin, free_bytes=1)

    assert went.tiles == []
    assert not went.summary.goal_met
    assert went.summary.stop == EVICTION_STOP_EMPTY


def test_a_tile_that_a_writer_holds_is_passed_over_and_told(
    admin: TileCacheClient, shared_database: str, block: Block
) -> None:
    keys = store(admin, block, 3)
    with psycopg.connect(shared_database) as writer:
        writer.execute("SELECT FROM tiles WHERE tile_uuid = %s FOR UPDATE", [tile_uuid(keys[0])])

        went = evict(admin, max_used_bytes=0)

    assert gone(went.tiles) == names(keys[1:])
    assert went.summary.stop == EVICTION_STOP_PENDING_UPLOADS
    assert went.summary.used_bytes == 100


@pytest.mark.parametrize("callers", [2, 4])
def test_evictions_at_once_keep_a_ceiling_and_no_more(
    admin: TileCacheClient, sql: psycopg.Connection[Any], callers: int
) -> None:
    fill(sql, 12_000, disk_bytes=10)

    with ThreadPoolExecutor(callers) as pool:
        went = list(pool.map(lambda _: evict(admin, max_used_bytes=33_335), range(callers)))

    assert all(each.summary.goal_met for each in went)
    ids = [each.tile_uuid for part in went for each in part.tiles]
    assert len(ids) == len(set(ids)) == 12_000 - 3_333
    assert read_usage(admin).total.used_bytes == 33_330


def test_evictions_at_once_free_together_what_each_was_asked(
    admin: TileCacheClient, sql: psycopg.Connection[Any]
) -> None:
    fill(sql, 12_000, disk_bytes=10)

    with ThreadPoolExecutor(2) as pool:
        went = list(pool.map(lambda _: evict(admin, free_bytes=45_005), range(2)))

    assert [each.summary.freed_bytes for each in went] == [45_010] * 2
    assert read_usage(admin).total.used_bytes == 120_000 - 2 * 45_010


def test_an_evicted_tile_is_listed_with_all_that_its_caller_needs(
    admin: TileCacheClient, block: Block
) -> None:
    key = block.key(3, 4)
    stored = insert(admin, tile(key, disk_bytes=77, file_path="a/b c.jpg")).tile
    touch(admin, key)

    (went,) = evict(admin, free_bytes=1).tiles
    (listed,) = list_evictions(admin)

    assert listed == went
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
    store(admin, block, 3)
    first, second, third = (each.eviction_id for each in evict(admin, free_bytes=300).tiles)

    assert confirm(admin, [third, 2**62, first, first]) == [True, False, True, True]

    assert [each.eviction_id for each in list_evictions(admin)] == [second]
    assert confirm(admin, [first, second]) == [False, True]


@pytest.mark.parametrize("ids", [[0], [5, -1]])
def test_what_is_no_evictions_id_is_refused(admin: TileCacheClient, ids: list[int]) -> None:
    with pytest.raises(CallError) as refusal:
        confirm(admin, ids)

    assert [each.field for each in refusal.value.violations] == [f"eviction_ids[{len(ids) - 1}]"]


def test_pages_neither_shift_nor_repeat_while_evictions_come_and_go(
    admin: TileCacheClient, block: Block
) -> None:
    store(admin, block, 30)
    went = [each.eviction_id for each in evict(admin, free_bytes=2_000).tiles]
    seen: list[int] = []
    token, confirmed = "", went[1::2]
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
    assert set(went[0::2]) <= set(seen), "what was there all the time was seen"


@pytest.mark.parametrize("token", ["x", "-1", "1.5", "9" * 19, "\N{ARABIC-INDIC DIGIT ONE}"])
def test_what_was_never_a_token_is_refused(admin: TileCacheClient, token: str) -> None:
    with pytest.raises(CallError) as refusal:
        admin.admin.ListEvictions(ListEvictionsRequest(page_token=token), timeout=TIMEOUT_S)

    assert [each.field for each in refusal.value.violations] == ["page_token"]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({}, "goal"),
        ({"max_used_bytes": -1}, "max_used_bytes"),
        ({"free_bytes": 0}, "free_bytes"),
        ({"free_bytes": -5}, "free_bytes"),
    ],
)
def test_a_goal_that_makes_no_sense_is_refused(
    admin: TileCacheClient, block: Block, request_: dict[str, int], field: str
) -> None:
    store(admin, block, 1)

    with pytest.raises(CallError) as refusal:
        evict(admin, **request_)

    assert refusal.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert [each.field for each in refusal.value.violations] == [field]
    assert exists(admin, block.key())


def test_a_file_that_is_to_be_removed_cannot_be_stored_until_that_is_confirmed(
    admin: TileCacheClient, block: Block
) -> None:
    again, other = tile(block.key(), disk_bytes=100), tile(block.key(1), disk_bytes=100)
    insert(admin, again)
    (went,) = evict(admin, free_bytes=1).tiles

    with pytest.raises(CallError) as refusal:
        insert(admin, again)
    (answer,) = bulk_insert(admin, [other, again])

    assert refusal.value.code is grpc.StatusCode.FAILED_PRECONDITION
    assert refusal.value.reason == "FILE_PENDING_REMOVAL"
    assert refusal.value.facts == {"file_path": again.file_path}
    assert answer.inserted_count == 1
    assert [(each.index, each.reason) for each in answer.refused] == [(1, "FILE_PENDING_REMOVAL")]
    assert read_usage(admin).total.tile_count == 1

    confirm(admin, [went.eviction_id])
    insert(admin, again)
    assert exists(admin, block.key())


def test_an_evicted_tile_may_come_back_with_another_file(
    admin: TileCacheClient, block: Block
) -> None:
    insert(admin, tile(block.key(), disk_bytes=100))
    evict(admin, free_bytes=1)

    insert(admin, tile(block.key(), disk_bytes=100, file_path="other.jpg"))

    assert exists(admin, block.key())
    assert [each.file_path for each in list_evictions(admin)] == [tile(block.key()).file_path]


def test_the_file_of_a_replaced_tile_is_listed(admin: TileCacheClient, block: Block) -> None:
    insert(admin, tile(block.key(), "old", disk_bytes=10, file_path="old.jpg"))

    newer = tile(block.key(), "newer", NOW, disk_bytes=20, file_path="newer.jpg")
    insert(admin, newer, ON_CONFLICT_REPLACE_IF_NEWER)

    (listed,) = list_evictions(admin)
    assert listed.reason == EVICTION_REASON_REPLACED
    assert (listed.file_path, listed.content_sha256) == ("old.jpg", sha256("old"))
    assert exists(admin, block.key())


def test_a_tile_replaced_in_its_file_lists_nothing(admin: TileCacheClient, block: Block) -> None:
    insert(admin, tile(block.key(), "old"))

    insert(admin, tile(block.key(), "newer", NOW), ON_CONFLICT_REPLACE_IF_NEWER)

    assert list(list_evictions(admin)) == []


def test_a_replacement_cannot_take_a_file_that_is_to_be_removed(
    admin: TileCacheClient, block: Block
) -> None:
    insert(admin, tile(block.key(0), disk_bytes=10, file_path="listed.jpg"))
    evict(admin, free_bytes=1)
    insert(admin, tile(block.key(1), "old"))

    newer = tile(block.key(1), "newer", NOW + timedelta(seconds=1), file_path="listed.jpg")
    with pytest.raises(CallError) as refusal:
        insert(admin, newer, ON_CONFLICT_REPLACE_IF_NEWER)

    assert refusal.value.reason == "FILE_PENDING_REMOVAL"


def test_no_row_ever_has_a_file_that_is_to_be_removed(
    admin: TileCacheClient, sql: psycopg.Connection[Any], block: Block
) -> None:
    """Inserting, evicting, deleting and confirming the same tiles at once."""
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


def test_a_deleted_tile_is_listed_like_an_evicted_one(admin: TileCacheClient, block: Block) -> None:
    store(admin, block, 2)

    delete(admin, tile_uuids=[tile_uuid(block.key(1))])

    (listed,) = list_evictions(admin)
    assert listed.reason == EVICTION_REASON_DELETED
    assert key_name(listed.key) == key_name(block.key(1))


def test_whoever_stops_listening_finds_on_the_list_what_went(
    admin: TileCacheClient, sql: psycopg.Connection[Any]
) -> None:
    fill(sql, 30_000, disk_bytes=10)
    answers = admin.admin.EvictTiles(EvictTilesRequest(max_used_bytes=0), timeout=TIMEOUT_S)
    heard = {each.eviction_id for each in next(answers).tiles}
    answers.cancel()

    again = evict(admin, max_used_bytes=0)

    assert again.summary.goal_met
    listed = {each.eviction_id for each in list_evictions(admin)}
    assert heard <= listed
    assert len(listed) == 30_000
