"""A file that any tile names is on no list of removals."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from tests.admin import confirm, delete, evict, list_evictions
from tests.tiles import (
    FLIGHT,
    NOW,
    ONBOARD,
    TIMEOUT_S,
    Block,
    bulk_insert,
    insert,
    tile,
    tile_uuid,
    waiting_for_locks,
)
from tests.waiting import eventually
from tilecache.client import TileCacheClient
from tilecache.v1.tile_metadata_store_pb2 import (
    INSERT_OUTCOME_REPLACED,
    ON_CONFLICT_REPLACE_IF_NEWER,
    MarkUploadedRequest,
    UploadedTile,
)

SHARED = "shared.jpg"


def test_a_deleted_tile_does_not_list_the_file_of_another(
    admin: TileCacheClient, block: Block
) -> None:
    downloaded, onboard = block.key(), block.key(source=ONBOARD, flight_id=FLIGHT)
    for key in (downloaded, onboard):
        insert(admin, tile(key, file_path=SHARED))

    (first,) = delete(admin, tile_uuids=[tile_uuid(downloaded)]).tiles

    assert (first.eviction_id, first.file_path) == (0, SHARED)
    assert list(list_evictions(admin)) == []

    (second,) = delete(admin, tile_uuids=[tile_uuid(onboard)], include_pending_uploads=True).tiles
    assert [each.eviction_id for each in list_evictions(admin)] == [second.eviction_id]


def test_an_evicted_tile_does_not_list_the_file_of_one_that_waits_for_upload(
    admin: TileCacheClient, block: Block
) -> None:
    insert(admin, tile(block.key(), file_path=SHARED))
    insert(admin, tile(block.key(source=ONBOARD, flight_id=FLIGHT), file_path=SHARED))

    went = evict(admin, max_used_bytes=0)

    assert [each.eviction_id for each in went.tiles] == [0]
    assert list(list_evictions(admin)) == []


def test_two_tiles_evicted_together_list_their_file_once(
    admin: TileCacheClient, block: Block
) -> None:
    bulk_insert(admin, [tile(block.key(column), file_path=SHARED) for column in range(3)])

    went = evict(admin, max_used_bytes=0)

    assert len(went.tiles) == 3
    listed = [each.eviction_id for each in list_evictions(admin)]
    assert listed == [each.eviction_id for each in went.tiles if each.eviction_id]
    assert len(listed) == 1


def test_a_replaced_tile_does_not_list_the_file_of_another(
    admin: TileCacheClient, block: Block
) -> None:
    for column in (0, 1):
        insert(admin, tile(block.key(column), file_path=SHARED))

    newer = tile(block.key(), "newer", NOW, file_path="newer.jpg")
    insert(admin, newer, ON_CONFLICT_REPLACE_IF_NEWER)

    assert list(list_evictions(admin)) == []


def test_tiles_of_one_batch_may_exchange_their_files(admin: TileCacheClient, block: Block) -> None:
    first, second = block.key(0), block.key(1)
    insert(admin, tile(first, "one", file_path="one.jpg"))
    insert(admin, tile(second, "two", file_path="two.jpg"))

    newer = [
        tile(first, "two", NOW, file_path="two.jpg"),
        tile(second, "one", NOW, file_path="one.jpg"),
    ]
    (answer,) = bulk_insert(admin, newer, on_conflict=ON_CONFLICT_REPLACE_IF_NEWER)

    assert answer.replaced_count == 2
    assert list(list_evictions(admin)) == []


@pytest.mark.parametrize("remove", ["evict", "delete", "replace"])
def test_an_insert_that_is_not_committed_yet_keeps_its_file_off_the_list(
    admin: TileCacheClient,
    sql: psycopg.Connection[Any],
    shared_database: str,
    block: Block,
    remove: str,
) -> None:
    insert(admin, tile(block.key(), file_path=SHARED, disk_bytes=100))
    with psycopg.connect(shared_database) as writer, ThreadPoolExecutor(1) as threads:
        writer.execute(
            "INSERT INTO tiles (tile_uuid, location_hash, zoom, x, y, source, latitude, longitude,"
            " tile_size_meters, tile_size_pixels, file_path, captured_at) "
            "VALUES (gen_random_uuid(), gen_random_uuid(), 18, %s, %s, 'googlemaps', 0, 0, 1, 256,"
            " %s, now())",
            (block.x + 50, block.y, SHARED),
        )
        removal = threads.submit(
            {
                "evict": lambda: evict(admin, max_used_bytes=0),
                "delete": lambda: delete(admin, tile_uuids=[tile_uuid(block.key())]),
                "replace": lambda: insert(
                    admin,
                    tile(block.key(), "newer", NOW, file_path="newer.jpg"),
                    ON_CONFLICT_REPLACE_IF_NEWER,
                ),
            }[remove]
        )
        eventually(lambda: waiting_for_locks(shared_database))
        writer.commit()
        removal.result(TIMEOUT_S)

    assert list(list_evictions(admin)) == []
    assert sql.execute("SELECT count(*) FROM tiles WHERE file_path = %s", [SHARED]).fetchall() == [
        (1,)
    ]


def test_a_confirmation_is_refused_for_a_file_that_a_tile_names(
    admin: TileCacheClient, sql: psycopg.Connection[Any], block: Block
) -> None:
    """Only where somebody has disabled the triggers."""
    insert(admin, tile(block.key(), file_path=SHARED))
    (went,) = delete(admin, tile_uuids=[tile_uuid(block.key())]).tiles
    sql.execute("SET session_replication_role = replica")
    sql.execute(
        "INSERT INTO tiles (tile_uuid, location_hash, zoom, x, y, source, latitude, longitude,"
        " tile_size_meters, tile_size_pixels, file_path, captured_at) "
        "VALUES (gen_random_uuid(), gen_random_uuid(), 18, 1, 1, 'googlemaps', 0, 0, 1, 256, %s,"
        " now())",
        [SHARED],
    )
    sql.execute("SET session_replication_role = origin")

    assert confirm(admin, [went.eviction_id]) == [False]
    assert list(list_evictions(admin)) == []


def test_a_replacement_by_the_same_content_stays_uploaded(
    admin: TileCacheClient, block: Block
) -> None:
    key = block.key(source=ONBOARD, flight_id=FLIGHT)
    insert(admin, tile(key))
    mark = UploadedTile(tile_uuid=tile_uuid(key), content_sha256=tile(key).content_sha256)
    admin.store.MarkUploaded(MarkUploadedRequest(tiles=[mark]), timeout=TIMEOUT_S)

    same = insert(admin, tile(key, captured_at=NOW), ON_CONFLICT_REPLACE_IF_NEWER)
    assert same.outcome == INSERT_OUTCOME_REPLACED
    assert same.tile.HasField("uploaded_at")
    assert same.tile.captured_at.ToDatetime() == NOW.replace(tzinfo=None)

    later = tile(key, "another", captured_at=NOW.replace(microsecond=0, year=NOW.year))
    later.captured_at.seconds += 60
    other = insert(admin, later, ON_CONFLICT_REPLACE_IF_NEWER)
    assert not other.tile.HasField("uploaded_at")


def test_writers_that_replace_and_evict_at_once_do_not_deadlock(
    admin: TileCacheClient, block: Block
) -> None:
    """Each round replaces tiles whose files others list."""
    keys = [block.key(column) for column in range(30)]
    over = threading.Event()

    def replace(number: int) -> int:
        rounds = 0
        while not over.is_set():
            rounds += 1
            for batch in (keys, keys[::-1]):
                bulk_insert(
                    admin,
                    [
                        tile(key, f"{number}.{rounds}", file_path=f"{number}.{rounds}.{key.x}.jpg")
                        for key in batch
                    ],
                    on_conflict=ON_CONFLICT_REPLACE_IF_NEWER,
                )
        return rounds

    def remove() -> int:
        rounds = 0
        while not over.is_set():
            rounds += 1
            evict(admin, free_bytes=20 * 12_345)
            confirm(admin, [each.eviction_id for each in list_evictions(admin)] or [1])
        return rounds

    with ThreadPoolExecutor() as threads:
        work = [threads.submit(replace, number) for number in range(2)]
        work += [threads.submit(remove), threads.submit(remove)]
        over.wait(2)
        over.set()
        assert all(each.result(TIMEOUT_S) for each in work)
