"""The configured ceiling, and the errors of inserts that would exceed it."""

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import code_pb2

from tests.admin import evict, read_usage
from tests.daemon_process import DaemonProcess
from tests.tiles import NOW, Block, bulk_insert, insert, tile
from tilecache.client import TileCacheClient
from tilecache.errors import CallError
from tilecache.v1.tile_metadata_store_pb2 import (
    INSERT_OUTCOME_ALREADY_PRESENT,
    INSERT_OUTCOME_REPLACED,
    ON_CONFLICT_REPLACE_IF_NEWER,
)

CEILING = 1_000


@pytest.fixture(scope="module")
def shared_daemon(shared_database: str) -> Iterator[DaemonProcess]:
    """A daemon with a ceiling."""
    with (
        tempfile.TemporaryDirectory(prefix="tilecache-") as directory,
        DaemonProcess(Path(directory), dsn=shared_database, max_used_bytes=CEILING) as process,
    ):
        yield process


def fill(admin: TileCacheClient, block: Block, tiles: int = 9) -> None:
    """Tiles of 100 bytes each."""
    (answer,) = bulk_insert(admin, [tile(key, disk_bytes=100) for key in block.keys(tiles)])
    assert answer.inserted_count == tiles


def used_bytes(admin: TileCacheClient) -> int:
    return read_usage(admin).total.used_bytes


def test_usage_includes_the_ceiling(admin: TileCacheClient, block: Block) -> None:
    fill(admin, block)

    usage = read_usage(admin)

    assert (usage.total.used_bytes, usage.max_used_bytes) == (900, CEILING)
    assert not usage.evict_on_insert


def test_a_tile_that_fits_exactly_is_stored(admin: TileCacheClient, block: Block) -> None:
    fill(admin, block)

    insert(admin, tile(block.key(0, 1), disk_bytes=100))

    assert used_bytes(admin) == CEILING


def test_a_tile_beyond_the_ceiling_is_refused_with_the_sizes(
    admin: TileCacheClient, block: Block
) -> None:
    fill(admin, block)

    with pytest.raises(CallError) as refusal:
        insert(admin, tile(block.key(0, 1), disk_bytes=101))

    assert refusal.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refusal.value.reason == "STORAGE_CEILING"
    assert refusal.value.facts == {
        "used_bytes": "900",
        "asked_bytes": "101",
        "max_used_bytes": "1000",
    }
    assert refusal.value.retry_after_s
    assert used_bytes(admin) == 900


def test_a_tile_larger_than_the_ceiling_is_invalid(admin: TileCacheClient, block: Block) -> None:
    with pytest.raises(CallError) as refusal:
        insert(admin, tile(block.key(), disk_bytes=CEILING + 1))

    assert refusal.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in refusal.value.violations] == ["tile.disk_bytes"]
    assert used_bytes(admin) == 0


def test_a_batch_near_the_ceiling_stores_what_fits_and_refuses_the_rest(
    admin: TileCacheClient, block: Block
) -> None:
    fill(admin, block, 8)
    batch = [tile(block.key(i, 1), disk_bytes=60) for i in range(5)]
    batch.append(tile(block.key(5, 1), disk_bytes=CEILING + 1))

    (answer,) = bulk_insert(admin, batch)

    assert answer.inserted_count == 3
    refusals = [
        (refused.index, refused.code, refused.reason, refused.field) for refused in answer.refused
    ]
    assert refusals == [
        (3, code_pb2.RESOURCE_EXHAUSTED, "STORAGE_CEILING", ""),
        (4, code_pb2.RESOURCE_EXHAUSTED, "STORAGE_CEILING", ""),
        (5, code_pb2.INVALID_ARGUMENT, "INVALID_REQUEST", "tiles[5].disk_bytes"),
    ]
    assert used_bytes(admin) == 980


def test_a_stored_tile_sent_again_needs_no_space(admin: TileCacheClient, block: Block) -> None:
    fill(admin, block, 10)

    again = insert(admin, tile(block.key(), disk_bytes=100))

    assert again.outcome == INSERT_OUTCOME_ALREADY_PRESENT


@pytest.mark.parametrize(("size", "stored"), [(100, True), (40, True), (200, True), (201, False)])
def test_a_replacement_needs_space_for_its_growth_only(
    admin: TileCacheClient, block: Block, size: int, stored: bool
) -> None:
    fill(admin, block)
    newer = tile(block.key(), "newer", NOW, disk_bytes=size)

    if stored:
        answer = insert(admin, newer, ON_CONFLICT_REPLACE_IF_NEWER)
        assert answer.outcome == INSERT_OUTCOME_REPLACED
    else:
        with pytest.raises(CallError) as refusal:
            insert(admin, newer, ON_CONFLICT_REPLACE_IF_NEWER)
        assert refusal.value.facts["asked_bytes"] == "101"

    assert used_bytes(admin) == (800 + size if stored else 900)


def test_concurrent_writers_do_not_exceed_the_ceiling(admin: TileCacheClient, block: Block) -> None:
    def write(row: int) -> int:
        stored = 0
        for column in range(10):
            try:
                insert(admin, tile(block.key(column, row), disk_bytes=70))
                stored += 1
            except CallError as error:
                assert error.reason == "STORAGE_CEILING"  # noqa: PT017
        return stored

    with ThreadPoolExecutor(4) as writers:
        stored = sum(writers.map(write, range(4)))

    assert stored == 14
    assert used_bytes(admin) == 980


def test_an_eviction_frees_space(admin: TileCacheClient, block: Block) -> None:
    fill(admin, block, 10)
    refused: Any = tile(block.key(0, 1), disk_bytes=150)
    with pytest.raises(CallError, match="evict tiles first"):
        insert(admin, refused)

    evict(admin, free_bytes=150)
    insert(admin, refused)

    assert used_bytes(admin) == 950
