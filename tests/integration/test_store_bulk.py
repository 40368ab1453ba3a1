"""BulkInsertTiles."""

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import psycopg
import pytest

from tests.daemon_process import DaemonProcess
from tests.tiles import (
    ONBOARD,
    TIMEOUT_S,
    YESTERDAY,
    Block,
    bulk_insert,
    by_key,
    insert,
    random_flight,
    sha256,
    store_row,
    tile,
    tile_uuid,
    waiting_for_locks,
)
from tests.waiting import eventually
from tilecache.client import TileCacheClient
from tilecache.errors import CallError
from tilecache.v1.tile_identity_pb2 import TileKey
from tilecache.v1.tile_metadata_store_pb2 import (
    ON_CONFLICT_KEEP_EXISTING,
    ON_CONFLICT_REPLACE_IF_NEWER,
    BulkInsertTilesRequest,
    BulkInsertTilesResponse,
    LookupTilesRequest,
    TileMetadata,
)

EARLIER = YESTERDAY - timedelta(days=10)


def contents(client: TileCacheClient, keys: list[TileKey]) -> list[str]:
    """The stored content of each key; empty if none is stored."""
    request = LookupTilesRequest(tiles=map(by_key, keys))
    results = client.store.LookupTiles(request, timeout=60).results
    return [result.tile.content_sha256 for result in results]


def counts(answer: BulkInsertTilesResponse) -> dict[str, int]:
    """The counts that are not zero."""
    return {
        field.name.removesuffix("_count"): value
        for field, value in answer.ListFields()
        if field.name.endswith("_count")
    }


def test_batches_are_acknowledged_in_order_with_their_counts(
    client: TileCacheClient, block: Block
) -> None:
    batches = [[tile(block.key(i, row)) for i in range(row + 1)] for row in range(5)]
    answers = bulk_insert(client, *batches)
    assert [answer.batch_index for answer in answers] == [0, 1, 2, 3, 4]
    assert [counts(answer) for answer in answers] == [{"inserted": row + 1} for row in range(5)]


def test_a_batch_is_acknowledged_after_its_commit_and_before_the_next_batch(
    client: TileCacheClient, block: Block, sql: psycopg.Connection[Any]
) -> None:
    queue: SimpleQueue[BulkInsertTilesRequest | None] = SimpleQueue()
    answers = client.store.BulkInsertTiles(iter(queue.get, None), timeout=60)
    for row in range(3):
        keys = [block.key(i, row) for i in range(10)]
        queue.put(BulkInsertTilesRequest(tiles=map(tile, keys)))
        assert counts(next(answers)) == {"inserted": 10}
        query = "SELECT count(*) FROM tiles WHERE tile_uuid = ANY(%s::uuid[])"
        assert sql.execute(query, [list(map(tile_uuid, keys))]).fetchone() == (10,)
    queue.put(None)
    assert list(answers) == []


def test_every_outcome_is_counted(client: TileCacheClient, block: Block) -> None:
    keys = list(block.keys(4))
    for key in keys[1:]:
        insert(client, tile(key, "old", EARLIER))
    batch = [
        tile(keys[0], "new"),
        tile(keys[1], "old", EARLIER),
        tile(keys[2], "new"),
        tile(keys[3], "new", EARLIER - timedelta(days=1)),
    ]
    (answer,) = bulk_insert(client, batch, on_conflict=ON_CONFLICT_REPLACE_IF_NEWER)
    assert counts(answer) == {
        "inserted": 1,
        "already_present": 1,
        "replaced": 1,
        "kept_existing": 1,
    }
    assert contents(client, keys) == [sha256(text) for text in ("new", "old", "new", "old")]


def test_the_same_batch_again_changes_nothing(client: TileCacheClient, block: Block) -> None:
    batch = [tile(key) for key in block.keys(50)]
    first, again = bulk_insert(client, batch, batch)
    assert counts(first) == {"inserted": 50}
    assert counts(again) == {"already_present": 50}


def test_a_partly_stored_batch_is_completed(client: TileCacheClient, block: Block) -> None:
    keys = list(block.keys(60))
    bulk_insert(client, [tile(key) for key in keys[::3]])
    (answer,) = bulk_insert(client, [tile(key) for key in keys])
    assert counts(answer) == {"inserted": 40, "already_present": 20}
    assert contents(client, keys) == [sha256("picture")] * 60


def test_a_conflict_is_refused_with_its_index_and_the_others_are_stored(
    client: TileCacheClient, block: Block
) -> None:
    keys = list(block.keys(5))
    insert(client, tile(keys[3], "old"))
    (answer,) = bulk_insert(client, [tile(key, "new") for key in keys])
    assert counts(answer) == {"inserted": 4}
    (refused,) = answer.refused
    assert refused.index == 3
    assert refused.code == grpc.StatusCode.ALREADY_EXISTS.value[0]
    assert refused.reason == "CONTENT_CONFLICT"
    assert refused.field == ""
    assert "different content" in refused.message
    assert contents(client, keys)[3] == sha256("old")


def test_valid_tiles_of_a_batch_are_stored_and_invalid_ones_refused(
    client: TileCacheClient, block: Block
) -> None:
    bad = [
        (tile(block.key(1), disk_bytes=-1), "disk_bytes"),
        (tile(block.key(2), file_path="../x"), "file_path"),
        (tile(block.key(3), captured_at=None), "captured_at"),
        (tile(TileKey(zoom=23, source=ONBOARD)), "key.zoom"),
        (TileMetadata(), "key.source"),
    ]
    batch = [tile(block.key(0)), *(message for message, _ in bad), tile(block.key(9))]
    (answer,) = bulk_insert(client, batch)
    assert counts(answer) == {"inserted": 2}
    assert [(refused.index, refused.field) for refused in answer.refused] == [
        (position, f"tiles[{position}].{field}") for position, (_, field) in enumerate(bad, 1)
    ]
    assert {refused.code for refused in answer.refused} == {3}
    assert {refused.reason for refused in answer.refused} == {"INVALID_REQUEST"}
    assert [bool(content) for content in contents(client, list(block.keys(10)))] == [
        *(True, False, False, False, False),
        *(False, False, False, False, True),
    ]


def test_a_batch_of_invalid_tiles_does_not_end_the_stream(
    client: TileCacheClient, block: Block
) -> None:
    first, second = bulk_insert(client, [TileMetadata()] * 3, [tile(block.key())])
    assert [refused.index for refused in first.refused] == [0, 1, 2]
    assert counts(second) == {"inserted": 1}


def test_a_repeated_key_in_a_batch_is_inserted_in_order(
    client: TileCacheClient, block: Block
) -> None:
    keep, replace, fail, same = block.keys(4)
    (answer,) = bulk_insert(
        client, [tile(keep, "1"), tile(keep, "2")], on_conflict=ON_CONFLICT_KEEP_EXISTING
    )
    assert counts(answer) == {"inserted": 1, "kept_existing": 1}
    (answer,) = bulk_insert(
        client,
        [
            tile(replace, "1", EARLIER),
            tile(replace, "2", YESTERDAY),
            tile(replace, "3", EARLIER + timedelta(days=1)),
        ],
        on_conflict=ON_CONFLICT_REPLACE_IF_NEWER,
    )
    assert counts(answer) == {"inserted": 1, "replaced": 1, "kept_existing": 1}
    (answer,) = bulk_insert(client, [tile(fail, "1"), tile(same), tile(fail, "2"), tile(same)])
    assert counts(answer) == {"inserted": 2, "already_present": 1}
    assert [refused.index for refused in answer.refused] == [2]
    assert contents(client, [keep, replace, fail]) == [sha256("1"), sha256("2"), sha256("1")]


@pytest.mark.parametrize("between", [0, 1])
def test_a_repeated_key_in_two_batches_is_inserted_in_order(
    client: TileCacheClient, between: int
) -> None:
    # Without an order, a short batch overtakes a long one that stores the key last.
    blocks = [Block() for _ in range(4)]
    last = [block.key(31, 31) for block in blocks]
    batches = []
    for block, contested in zip(blocks, last, strict=True):
        others = [tile(block.key(i, row)) for i in range(31) for row in range(32)]
        short = [[tile(block.key(31))]] * between
        batches += [[*others, tile(contested, "1")], *short, [tile(contested, "2")]]
    answers = bulk_insert(client, *batches)
    expected = [{"inserted": 993}, *[{"inserted": 1}] * between, {}]
    assert [counts(answer) for answer in answers] == expected * len(blocks)
    assert contents(client, last) == [sha256("1")] * len(blocks)


def test_a_failing_stream_acknowledges_the_batches_before(
    client: TileCacheClient, block: Block
) -> None:
    batches = [[tile(block.key(0, row))] for row in range(3)]
    answers = client.store.BulkInsertTiles(
        iter(
            [*(BulkInsertTilesRequest(tiles=tiles) for tiles in batches), BulkInsertTilesRequest()]
        ),
        timeout=60,
    )
    assert [counts(next(answers)) for _ in range(3)] == [{"inserted": 1}] * 3
    with pytest.raises(CallError, match="must not be empty"):
        next(answers)


def test_counts_and_refusals_add_up_to_the_batch(client: TileCacheClient, block: Block) -> None:
    chance = random.Random(2)
    batches = [
        [
            tile(
                block.key(chance.randrange(20)),
                chance.choice("abc"),
                YESTERDAY - timedelta(days=chance.randrange(5)),
                disk_bytes=chance.choice([1, 1, 1, -1]),
            )
            for _ in range(chance.randrange(1, 60))
        ]
        for _ in range(20)
    ]
    for on_conflict in range(4):
        answers = bulk_insert(client, *batches, on_conflict=on_conflict)
        for batch, answer in zip(batches, answers, strict=True):
            assert sum(counts(answer).values()) + len(answer.refused) == len(batch)
            assert [refused.index for refused in answer.refused] == sorted(
                {refused.index for refused in answer.refused}
            )


def test_the_largest_batch_is_accepted(client: TileCacheClient, block: Block) -> None:
    (answer,) = bulk_insert(client, [tile(key) for key in block.keys(100, 100)])
    assert counts(answer) == {"inserted": 10_000}


def test_a_batch_that_is_too_large_is_refused_and_ends_the_stream(
    client: TileCacheClient, block: Block
) -> None:
    before, oversized, after = block.key(0), list(block.keys(100, 100)), block.key(99, 99)
    requests = iter(
        [
            BulkInsertTilesRequest(tiles=[tile(before)]),
            BulkInsertTilesRequest(tiles=[*map(tile, oversized), tile(after)]),
        ]
    )
    answers = client.store.BulkInsertTiles(requests, timeout=60)
    assert counts(next(answers)) == {"inserted": 1}
    with pytest.raises(CallError) as caught:
        next(answers)
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.reason == "LIMIT_EXCEEDED"
    assert caught.value.violations == [("tiles", "has 10001 items, must have at most 10000")]
    assert contents(client, oversized[:4096]).count("") == 4095


def test_an_empty_stream_has_no_acknowledgements(client: TileCacheClient) -> None:
    assert bulk_insert(client) == []


def test_acknowledged_tiles_remain_when_the_stream_is_cancelled(
    client: TileCacheClient, block: Block
) -> None:
    queue: SimpleQueue[BulkInsertTilesRequest] = SimpleQueue()
    answers = client.store.BulkInsertTiles(iter(queue.get, None), timeout=60)
    queue.put(BulkInsertTilesRequest(tiles=[tile(block.key())]))
    next(answers)
    answers.cancel()
    queue.put(BulkInsertTilesRequest())
    assert contents(client, [block.key()]) == [sha256("picture")]


@pytest.mark.parametrize("on_conflict", [0, ON_CONFLICT_REPLACE_IF_NEWER])
def test_concurrent_streams_with_the_same_keys_do_not_deadlock(
    short_directory: Path, database: str, block: Block, on_conflict: int
) -> None:
    flights = [random_flight() for _ in range(2)]
    keys = [
        block.key(i % 50, i // 50, ONBOARD, flight_id)
        for i in range(300)
        for flight_id in (None, *flights)
    ]

    def stream(number: int) -> Counter[str]:
        order = list(keys)
        random.Random(number).shuffle(order)
        captured_at = YESTERDAY - timedelta(minutes=number % 3)
        batches = [
            [tile(key, captured_at=captured_at) for key in order[start : start + 60]]
            for start in range(0, len(order), 60)
        ]
        total: Counter[str] = Counter()
        for answer in bulk_insert(daemon.client, *batches, on_conflict=on_conflict):
            assert not answer.refused
            total += Counter(counts(answer))
        return total

    # On a busy machine the streams wait for each other longer than by default.
    with (
        DaemonProcess(short_directory, dsn=database, pool_timeout_s=TIMEOUT_S) as daemon,
        ThreadPoolExecutor(6) as threads,
    ):
        totals = list(threads.map(stream, range(6)))
        assert "" not in contents(daemon.client, keys)
    assert sum(total["inserted"] for total in totals) == len(keys)
    assert all(total.total() == len(keys) for total in totals)
    with psycopg.connect(database) as connection:
        query = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        assert connection.execute(query).fetchone() == (0,)


def test_a_deadlock_with_another_writer_is_retried(
    client: TileCacheClient, block: Block, sql: psycopg.Connection[Any]
) -> None:
    new, old = block.keys(2)
    insert(client, tile(old))
    sql.execute("SET deadlock_timeout = '1h'")
    with ThreadPoolExecutor(1) as threads, sql.transaction():
        sql.execute(
            "UPDATE tiles SET file_path = 'moved.jpg' WHERE tile_uuid = %s", [tile_uuid(old)]
        )
        answering = threads.submit(bulk_insert, client, [tile(new), tile(old)])
        eventually(lambda: waiting_for_locks(sql.info.dsn))
        store_row(sql, new)
    (answer,) = answering.result()
    assert counts(answer) == {"already_present": 1}
    assert [refused.reason for refused in answer.refused] == ["CONTENT_CONFLICT"]
