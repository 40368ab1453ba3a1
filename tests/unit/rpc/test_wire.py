"""Conversion of tiles to messages."""

import json
from datetime import datetime, timezone

from hypothesis import given

from tests.unit.some_tiles import old_row, tiles
from tilecache.identity import SOURCE_NUMBERS
from tilecache.v1.tile_identity_pb2 import TILE_SOURCE_UNSPECIFIED
from tilecache.v1.tile_metadata_store_pb2 import (
    FRESHNESS_LABEL_DOWNGRADED,
    TileMetadata,
)
from tilecache_daemon.models import FreshnessLabel, Tile, micros_of
from tilecache_daemon.rpc import wire


def micros_of_field(message: TileMetadata, field: str) -> int | None:
    if not message.HasField(field):
        return None
    moment: datetime = getattr(message, field).ToDatetime(timezone.utc)
    return micros_of(moment)


@given(tiles)
def test_a_message_has_all_fields_of_its_tile(tile: Tile) -> None:
    (message,) = wire.tile_messages([tile])
    key = message.key
    assert (key.zoom, key.x, key.y) == (tile.zoom, tile.x, tile.y)
    assert key.source == SOURCE_NUMBERS[tile.source]
    assert (key.flight_id if key.HasField("flight_id") else None) == tile.flight_id
    assert message.content_sha256 == (tile.content_sha256 or "")
    assert (message.disk_bytes if message.HasField("disk_bytes") else None) == tile.disk_bytes
    for event in ("captured", "created", "accessed", "uploaded"):
        assert micros_of_field(message, f"{event}_at") == getattr(tile, f"{event}_us")
    for field in (
        *("tile_uuid", "location_hash", "latitude", "longitude"),
        *("tile_size_meters", "tile_size_pixels", "file_path"),
    ):
        assert getattr(message, field) == getattr(tile, field)
    assert message.freshness_label == wire.LABEL_NUMBERS[tile.freshness_label]
    assert message.HasField("quality_metadata") is (tile.quality_metadata is not None)
    if tile.quality_metadata is not None:
        assert dict(message.quality_metadata.items()) == json.loads(tile.quality_metadata)


def test_a_row_of_the_oldest_schema_has_a_message() -> None:
    (message,) = wire.tile_messages([old_row()])
    assert message.key.source == TILE_SOURCE_UNSPECIFIED
    assert message.content_sha256 == ""
    assert not message.HasField("disk_bytes")
    assert list(message.quality_metadata["value"]) == [1, 2]


def test_each_label_has_a_number() -> None:
    assert set(wire.LABEL_NUMBERS) == {label.value for label in FreshnessLabel}
    assert wire.LABEL_NUMBERS["downgraded"] == FRESHNESS_LABEL_DOWNGRADED


def test_a_time_before_1970_keeps_its_microseconds() -> None:
    moment = datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=timezone.utc)
    message = wire.timestamp(moment)
    assert message is not None
    assert (message.seconds, message.nanos) == (-1, 999_999_000)
