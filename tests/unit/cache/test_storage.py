"""The cache's storage stays under its ceiling, in the order of use, and counts what it holds."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.columns import columns_of
from tests.unit.some_tiles import old_row
from tilecache.identity import tile_uuid_text
from tilecache.mercator import BlockKey
from tilecache_daemon.cache.blocks import Block, in_order, split_blocks
from tilecache_daemon.cache.storage import CacheStorage
from tilecache_daemon.rpc import packing

ZOOM, X, ROOM = 18, 32 * 100, 3
Use = Callable[[CacheStorage, int], object]


def tile_uuid(number: int, row: int = 0) -> str:
    return tile_uuid_text(ZOOM, X + 32 * number, row, "googlemaps", None)


def key(number: int) -> BlockKey:
    return BlockKey(ZOOM, X // 32 + number, 0)


def block(number: int, tile_count: int = 1, path: str = "a.jpg") -> Block:
    rows = [
        old_row()._replace(
            zoom=ZOOM, x=X + 32 * number, y=y, tile_uuid=tile_uuid(number, y), file_path=path
        )
        for y in range(tile_count)
    ]
    tiles = in_order(columns_of(rows))
    (made,) = split_blocks([key(number)], tiles, packing.pack_tiles(tiles))
    return made


def full_storage() -> CacheStorage:
    storage = CacheStorage(ROOM * block(0).byte_count)
    for number in range(ROOM):
        storage.put(block(number))
    assert storage.tile_count == ROOM
    return storage


def test_the_ceiling_is_kept_and_removed_blocks_are_not_found() -> None:
    storage = full_storage()
    for number in range(ROOM, 20):
        storage.put(block(number))
        assert storage.tile_count == ROOM
        assert storage.used_bytes <= storage.max_bytes
    assert storage.find_block(key(0), allow_stale=True) is None
    assert storage.find_tiles([tile_uuid(0)], allow_stale=True) == [None]


@pytest.mark.parametrize(
    "use",
    [
        lambda storage, number: storage.find_block(key(number)),
        lambda storage, number: storage.find_tiles([tile_uuid(number)]),
    ],
    ids=["by region", "by id"],
)
def test_the_least_recently_used_block_is_removed_first(use: Use) -> None:
    storage = full_storage()
    assert use(storage, 0)
    storage.put(block(ROOM))
    assert storage.find_block(key(0))
    assert storage.find_block(key(1), allow_stale=True) is None


def test_a_block_larger_than_the_ceiling_removes_no_other() -> None:
    storage = full_storage()
    storage.put(block(ROOM, path="p" * storage.max_bytes))
    assert storage.tile_count == ROOM
    assert storage.find_block(key(ROOM)) is None


def test_a_stale_block_is_found_only_where_stale_tiles_are_allowed() -> None:
    storage = full_storage()
    storage.invalidate([key(1), key(99)])
    assert storage.find_block(key(1)) is None
    assert storage.find_block(key(1), allow_stale=True)
    found = [element is not None for element in storage.find_tiles([tile_uuid(0), tile_uuid(1)])]
    assert found == [True, False]
    assert None not in storage.find_tiles([tile_uuid(0), tile_uuid(1)], allow_stale=True)
    storage.put(block(1))
    assert storage.find_block(key(1))


def test_a_tile_that_moved_to_another_block_is_found_there() -> None:
    storage = full_storage()
    row = old_row()._replace(zoom=ZOOM, x=X + 32, y=0, tile_uuid=tile_uuid(0))
    (moved,) = split_blocks([key(1)], columns_of([row]), packing.pack_tiles(columns_of([row])))
    storage.put(moved)
    storage.put(block(0, tile_count=0))
    assert storage.find_tiles([tile_uuid(0)]) == [moved.elements[0]]


steps = st.one_of(
    st.tuples(
        st.just("put"), st.integers(0, 5), st.integers(0, 4), st.sampled_from(["a", "b" * 90])
    ),
    st.tuples(st.just("rewrite"), st.integers(0, 5), st.integers(0, 3), st.binary(max_size=300)),
    st.tuples(st.just("invalidate"), st.integers(0, 5)),
    st.tuples(st.just("find"), st.integers(0, 5), st.integers(0, 3)),
)


@settings(max_examples=300)
@given(st.integers(0, 20_000), st.lists(steps, max_size=40))
def test_used_bytes_are_the_sum_of_what_is_cached(
    max_bytes: int, history: list[tuple[object, ...]]
) -> None:
    storage = CacheStorage(max_bytes)
    for step in history:
        match step:
            case ("put", int(number), int(tile_count), str(path)):
                storage.put(block(number, tile_count, path))
            case ("rewrite", int(number), int(row), bytes(element)):
                storage.rewrite(tile_uuid(number, row), lambda _, element=element: element)
            case ("invalidate", int(number)):
                storage.invalidate([key(number)])
            case ("find", int(number), int(row)):
                storage.find_tiles([tile_uuid(number, row)])
        cached = [
            found
            for number in range(6)
            if (found := storage.find_block(key(number), allow_stale=True))
        ]
        empty = {number: block(number, 0).byte_count for number in range(6)}
        per_tile = block(0, 1).byte_count - len(block(0, 1).elements[0]) - empty[0]
        assert storage.used_bytes == sum(
            empty[0] + sum(len(element) + per_tile for element in found.elements)
            for found in cached
        )
        assert storage.used_bytes <= max_bytes
        assert storage.tile_count == sum(found.tile_count for found in cached)
        assert {
            tile_uuid
            for found in cached
            for tile_uuid in found.tile_uuids
            if storage.find_tiles([tile_uuid], allow_stale=True) == [None]
        } == set()
