"""Conversion of models to messages."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Final, TypeVar, overload

from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from tilecache.block_digests import SHORT_DIGEST_BYTES
from tilecache.identity import SOURCE_NUMBERS
from tilecache.v1 import tile_identity_pb2, tile_metadata_store_pb2
from tilecache_daemon.models import (
    FIRST_MICROS,
    LAST_MICROS,
    UNIX_SECONDS_AT_2000,
    Eviction,
    Flight,
    FreshnessLabel,
    Tile,
    micros_of,
)
from tilecache_daemon.store.digests import BlockDigest
from tilecache_daemon.store.freshness import ExpiringTile
from tilecache_daemon.store.tile_columns import NO_TIME, UUID_BYTES

LABEL_NUMBERS: Final = {
    label.value: tile_metadata_store_pb2.FreshnessLabel.Value(f"FRESHNESS_LABEL_{label.name}")
    for label in FreshnessLabel
}


PAGE_BYTES: Final = 3_000_000
"""Of the items in a message: less than MAX_ANSWER_BYTES, whatever rows of other writers hold."""

PART_TILES: Final = 100_000
"""Tiles of a block in a message, of which each takes 24 bytes."""

Item = TypeVar("Item", bound=Message)

_MIN_INT64: Final = -(1 << 63)
_MAX_INT64: Final = (1 << 63) - 1


def tile_messages(tiles: Iterable[Tile]) -> Iterator[tile_metadata_store_pb2.TileMetadata]:
    """Tiles as messages. `packing.py` encodes many tiles at once."""
    for tile in tiles:
        yield tile_metadata_store_pb2.TileMetadata(
            tile_uuid=tile.tile_uuid,
            key=tile_key(tile),
            location_hash=tile.location_hash,
            latitude=tile.latitude,
            longitude=tile.longitude,
            tile_size_meters=tile.tile_size_meters,
            tile_size_pixels=tile.tile_size_pixels,
            file_path=tile.file_path,
            content_sha256=tile.content_sha256 or "",
            disk_bytes=tile.disk_bytes,
            captured_at=_timestamp(tile.captured_us),
            created_at=_timestamp(tile.created_us),
            accessed_at=_optional_timestamp(tile.accessed_us),
            uploaded_at=_optional_timestamp(tile.uploaded_us),
            freshness_label=LABEL_NUMBERS[tile.freshness_label],
            quality_metadata=None
            if tile.quality_metadata is None
            else quality_struct(tile.quality_metadata),
        )


def tile_key(tile: Tile | Eviction | ExpiringTile) -> tile_identity_pb2.TileKey:
    """The key of a row. A source that the contract does not know is unspecified."""
    return tile_identity_pb2.TileKey(
        zoom=tile.zoom,
        x=tile.x,
        y=tile.y,
        source=SOURCE_NUMBERS.get(tile.source, tile_identity_pb2.TILE_SOURCE_UNSPECIFIED),
        flight_id=tile.flight_id,
    )


def flight_message(flight: Flight) -> tile_metadata_store_pb2.Flight:
    """A flight as a message."""
    bounds = flight.bounds
    return tile_metadata_store_pb2.Flight(
        flight_id=flight.flight_id,
        name=flight.name,
        started_at=timestamp(flight.started_at),
        ended_at=timestamp(flight.ended_at),
        recorded=flight.recorded,
        tile_count=flight.tile_count,
        used_bytes=int64(flight.used_bytes),
        pending_upload_count=flight.pending_count,
        pending_upload_bytes=int64(flight.pending_bytes),
        first_captured_at=timestamp(flight.first_captured_at),
        last_captured_at=timestamp(flight.last_captured_at),
        bounds=tile_metadata_store_pb2.BoundingBox(**bounds._asdict()) if bounds else None,
    )


def block_digests(
    block: BlockDigest,
) -> Iterator[tile_metadata_store_pb2.BlockDigest]:
    """A block's digest as a message, or as several if its tiles do not fit into one."""
    for start in range(0, max(len(block.tile_digests), 1), PART_TILES * SHORT_DIGEST_BYTES):
        first, last = start // SHORT_DIGEST_BYTES, start // SHORT_DIGEST_BYTES + PART_TILES
        yield tile_metadata_store_pb2.BlockDigest(
            block_x=block.block_x,
            block_y=block.block_y,
            tile_count=block.tile_count,
            digest=block.digest,
            tile_uuids=block.tile_uuids[first * UUID_BYTES : last * UUID_BYTES],
            tile_digests=block.tile_digests[first * SHORT_DIGEST_BYTES : last * SHORT_DIGEST_BYTES],
        )


def quality_struct(text: str | bytes) -> Struct:
    """JSON as a message. Values that are not objects, which rows of revision 0001 may have, are
    wrapped in one."""
    message, quality = Struct(), json.loads(text)
    message.update(quality if isinstance(quality, dict) else {"value": quality})
    return message


def label_number(label: FreshnessLabel | None) -> tile_metadata_store_pb2.FreshnessLabel.ValueType:
    """The number of a label; FRESHNESS_LABEL_UNSPECIFIED for None."""
    if label is None:
        return tile_metadata_store_pb2.FRESHNESS_LABEL_UNSPECIFIED
    return LABEL_NUMBERS[label.value]


def int64(number: int) -> int:
    """The nearest number that an int64 holds. Sums of sizes may be larger, because rows of other
    writers may have any size."""
    return max(_MIN_INT64, min(number, _MAX_INT64))


@overload
def timestamp(moment: datetime) -> Timestamp: ...
@overload
def timestamp(moment: None) -> None: ...
def timestamp(moment: datetime | None) -> Timestamp | None:
    """A time as a message."""
    return None if moment is None else _timestamp(micros_of(moment))


def _timestamp(micros: int) -> Timestamp:
    seconds, rest = divmod(min(max(micros, FIRST_MICROS), LAST_MICROS), 1_000_000)
    return Timestamp(seconds=UNIX_SECONDS_AT_2000 + seconds, nanos=rest * 1_000)


def _optional_timestamp(micros: int | None) -> Timestamp | None:
    # As `packing.py`, which cannot tell -infinity from null.
    return None if micros is None or micros == NO_TIME else _timestamp(micros)


def in_parts(items: Iterable[Item], most: int) -> Iterator[list[Item]]:
    """The items in parts of at most `most` and of about PAGE_BYTES."""
    part: list[Item] = []
    byte_count = 0
    for item in items:
        size = item.ByteSize()
        if part and (len(part) == most or byte_count + size > PAGE_BYTES):
            yield part
            part, byte_count = [], 0
        part.append(item)
        byte_count += size
    if part:
        yield part
