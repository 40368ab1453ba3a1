"""Tiles as the bytes of their messages, and messages joined from bytes."""

from datetime import datetime, timezone

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.unit.columns import columns_of
from tests.unit.some_tiles import old_row, tiles
from tilecache.v1.tile_metadata_store_pb2 import (
    GetTileResponse,
    LookupTilesResponse,
    QueryTilesResponse,
)
from tilecache_daemon.models import Tile, micros_of
from tilecache_daemon.rpc import packing, wire


def elements_of(some: list[Tile]) -> list[bytes]:
    return packing.pack_tiles(columns_of(some))


def plain(tile: Tile) -> Tile:
    # A map's entries have no order in bytes, and protobuf leaves an empty path out.
    return tile._replace(quality_metadata=None, file_path=tile.file_path or "x")


@given(st.lists(tiles.map(plain), max_size=9))
def test_tiles_are_packed_as_protobuf_packs_their_messages(some: list[Tile]) -> None:
    assert elements_of(some) == [
        GetTileResponse(tile=message).SerializeToString() for message in wire.tile_messages(some)
    ]


@given(st.lists(tiles, max_size=9))
@example([old_row()._replace(longitude=zero) for zero in (-0.0, 0.0)])
def test_tiles_are_read_as_they_were_packed(some: list[Tile]) -> None:
    read = QueryTilesResponse.FromString(b"".join(elements_of(some))).tiles
    assert list(read) == list(wire.tile_messages(some))


@given(tiles.map(plain), st.integers(2, 50))
def test_what_neighbours_share_is_packed_for_each(tile: Tile, count: int) -> None:
    some = [tile._replace(x=x) for x in range(count)]
    assert elements_of(some) == [
        GetTileResponse(tile=message).SerializeToString() for message in wire.tile_messages(some)
    ]


def test_quality_that_is_an_empty_object_is_not_taken_for_none() -> None:
    some = [old_row()._replace(quality_metadata=text) for text in ("{}", None, '{"a": 1}')]
    read = QueryTilesResponse.FromString(b"".join(elements_of(some))).tiles
    assert [tile.HasField("quality_metadata") for tile in read] == [True, False, True]


@pytest.mark.parametrize("size", [1, 127, 128, 16_383, 16_384, 2_100_000])
def test_a_tile_of_any_size_is_packed_beside_others(size: int) -> None:
    some = [old_row()._replace(x=x) for x in range(40)]
    some[7] = some[7]._replace(file_path="x" * size)
    read = QueryTilesResponse.FromString(b"".join(elements_of(some))).tiles
    assert [len(tile.file_path) for tile in read] == [len(tile.file_path) for tile in some]


@given(st.lists(st.none() | tiles, max_size=5))
def test_a_lookups_answer_is_a_join_of_its_results(found: list[Tile | None]) -> None:
    answer = packing.pack_results([tile and elements_of([tile])[0] for tile in found])
    results = LookupTilesResponse.FromString(answer).results
    assert [result.tile if result.HasField("tile") else None for result in results] == [
        next(wire.tile_messages([tile])) if tile else None for tile in found
    ]


@given(tiles)
def test_a_packed_tile_takes_another_time_of_its_last_use(tile: Tile) -> None:
    moment = datetime(2026, 3, 1, tzinfo=timezone.utc)
    answer = GetTileResponse.FromString(packing.with_access(elements_of([tile])[0], moment))
    used = tile._replace(accessed_us=micros_of(moment))
    assert answer.tile == next(wire.tile_messages([used]))
