"""Tiles as messages, and messages joined from bytes."""

import json
from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tilecache.v1.tile_identity_pb2 import TILE_SOURCE_UNSPECIFIED
from tilecache.v1.tile_metadata_store_pb2 import (
    FRESHNESS_LABEL_DOWNGRADED,
    GetTileResponse,
    LookupTilesResponse,
    TileMetadata,
)

from tilecache_daemon.identity import SOURCE_NUMBERS
from tilecache_daemon.models import FreshnessLabel, Tile, TileColumns, micros_of
from tilecache_daemon.rpc import wire

micros = st.datetimes(timezones=st.just(timezone.utc)).map(micros_of)
uuids = st.uuids().map(str)
tiles = st.builds(
    Tile,
    tile_uuid=uuids,
    location_hash=uuids,
    zoom=st.integers(0, 22),
    x=st.integers(0, 4194303),
    y=st.integers(0, 4194303),
    source=st.sampled_from(sorted(SOURCE_NUMBERS)),
    flight_id=st.none() | uuids,
    latitude=st.floats(-90, 90),
    longitude=st.floats(-180, 180),
    tile_size_meters=st.floats(0.001, 1e8),
    tile_size_pixels=st.integers(1, 65536),
    file_path=st.text(st.characters(exclude_categories=["Cs"])),
    content_sha256=st.none() | st.text("0123456789abcdef", min_size=64, max_size=64),
    disk_bytes=st.none() | st.integers(0, 2**63 - 1),
    captured_us=micros,
    created_us=micros,
    accessed_us=st.none() | micros,
    uploaded_us=st.none() | micros,
    freshness_label=st.sampled_from([label.value for label in FreshnessLabel]),
    quality_metadata=st.none()
    | st.dictionaries(st.text("abc"), st.booleans() | st.text("xyz")).map(json.dumps),
)


def read_micros(message: TileMetadata, field: str) -> int | None:
    if not message.HasField(field):
        return None
    moment: datetime = getattr(message, field).ToDatetime(timezone.utc)
    return micros_of(moment)


@given(tiles)
def test_a_tiles_message_says_all_that_is_known_of_it(tile: Tile) -> None:
    (message,) = wire.tile_messages([tile])
    key = message.key
    assert (key.zoom, key.x, key.y) == (tile.zoom, tile.x, tile.y)
    assert key.source == SOURCE_NUMBERS[tile.source]
    assert (key.flight_id if key.HasField("flight_id") else None) == tile.flight_id
    assert message.content_sha256 == (tile.content_sha256 or "")
    assert (message.disk_bytes if message.HasField("disk_bytes") else None) == tile.disk_bytes
    for event in ("captured", "created", "accessed", "uploaded"):
        assert read_micros(message, f"{event}_at") == getattr(tile, f"{event}_us")
    for field in (
        *("tile_uuid", "location_hash", "latitude", "longitude"),
        *("tile_size_meters", "tile_size_pixels", "file_path"),
    ):
        assert getattr(message, field) == getattr(tile, field)
    assert message.freshness_label == wire.LABEL_NUMBERS[tile.freshness_label]
    assert message.HasField("quality_metadata") is (tile.quality_metadata is not None)
    if tile.quality_metadata is not None:
        assert dict(message.quality_metadata.items()) == json.loads(tile.quality_metadata)


def old_row() -> Tile:
    """A row as revision 0001 could hold it."""
    return Tile(
        *(
            "17f7ac7e-6c25-5050-a7cd-b6578cd5f323",
            "8d180ffb-bd42-5cb4-a4d6-628829b798b6",
            18,
            1,
            2,
            "somewhere_else",
            None,
            1.0,
            2.0,
            100.0,
            256,
            "a.jpg",
        ),
        *(None, None, 0, 0, None, None, "stale_warn", "[1, 2]"),
    )


def test_a_row_of_the_old_schema_has_a_message() -> None:
    (message,) = wire.tile_messages([old_row()])
    assert message.key.source == TILE_SOURCE_UNSPECIFIED
    assert message.content_sha256 == ""
    assert not message.HasField("disk_bytes")
    assert list(message.quality_metadata["value"]) == [1, 2]


def test_each_label_has_its_number() -> None:
    assert set(wire.LABEL_NUMBERS) == {label.value for label in FreshnessLabel}
    assert wire.LABEL_NUMBERS["downgraded"] == FRESHNESS_LABEL_DOWNGRADED


def test_a_moment_before_1970_keeps_its_microseconds() -> None:
    moment = datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=timezone.utc)
    message = wire.timestamp(moment)
    assert message is not None
    assert (message.seconds, message.nanos) == (-1, 999_999_000)


@given(st.lists(tiles, max_size=9))
def test_tiles_are_packed_as_protobuf_packs_their_messages(many: list[Tile]) -> None:
    # A map's entries have no order in bytes.
    plain = [tile._replace(quality_metadata=None, file_path=tile.file_path or "x") for tile in many]
    assert wire.pack_tiles(TileColumns.of(plain)) == [
        GetTileResponse(tile=message).SerializeToString() for message in wire.tile_messages(plain)
    ]


@pytest.mark.parametrize("size", [1, 127, 128, 16_383, 16_384, 2_100_000])
def test_a_tile_of_any_size_is_read_as_it_was_packed(size: int) -> None:
    (message,) = wire.tile_messages([old_row()._replace(file_path="x" * size)])
    assert message.file_path == "x" * size


@given(st.lists(st.none() | tiles, max_size=5))
def test_a_lookups_answer_is_a_join_of_its_results(found: list[Tile | None]) -> None:
    elements = [tile and wire.pack_tiles(TileColumns.of([tile]))[0] for tile in found]
    results = LookupTilesResponse.FromString(wire.pack_results(elements)).results
    assert [result.tile if result.HasField("tile") else None for result in results] == [
        next(iter(wire.tile_messages([tile]))) if tile else None for tile in found
    ]
