"""From models to messages, and to the bytes of messages.

A repeated field's wire form is the concatenation of its elements'. Every answer
that carries tiles has them in field 1; so a tile is packed once, as an element
of field 1, and an answer is a join of such elements.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Final, overload

from google.protobuf.timestamp_pb2 import Timestamp
from tilecache.v1 import tile_identity_pb2, tile_metadata_store_pb2

from tilecache_daemon.identity import SOURCE_NUMBERS
from tilecache_daemon.models import FreshnessLabel, Tile

LABEL_NUMBERS: Final = {
    label.value: tile_metadata_store_pb2.FreshnessLabel.Value(f"FRESHNESS_LABEL_{label.name}")
    for label in FreshnessLabel
}

CHUNK_BYTES: Final = 1024 * 1024
"""Well below the 4 MiB that a gRPC client takes unless it is told otherwise."""

_FIELD_1: Final = b"\x0a"  # field 1, length-delimited
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND: Final = timedelta(microseconds=1)


def pack_element(message: bytes) -> bytes:
    """A message as an element of field 1 of another."""
    return _FIELD_1 + _varint(len(message)) + message


def pack_tile(tile: Tile) -> bytes:
    """A tile as an element of field 1."""
    return pack_element(tile_message(tile).SerializeToString())


def join_pieces(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Pieces of joined elements as whole messages of about CHUNK_BYTES each."""
    chunk: list[bytes] = []
    room = CHUNK_BYTES
    for piece in pieces:
        if len(piece) > room and chunk:
            yield b"".join(chunk)
            chunk, room = [], CHUNK_BYTES
        chunk.append(piece)
        room -= len(piece)
    if chunk:
        yield b"".join(chunk)


def with_access(element: bytes, accessed_at: datetime) -> bytes:
    """A packed tile with another time of its last use."""
    answer = tile_metadata_store_pb2.GetTileResponse.FromString(element)
    answer.tile.accessed_at.CopyFrom(timestamp(accessed_at))
    return answer.SerializeToString()


def tile_message(tile: Tile) -> tile_metadata_store_pb2.TileMetadata:
    """A tile as a message."""
    message = tile_metadata_store_pb2.TileMetadata(
        tile_uuid=tile.tile_uuid,
        key=tile_identity_pb2.TileKey(
            zoom=tile.zoom,
            x=tile.x,
            y=tile.y,
            source=SOURCE_NUMBERS.get(tile.source, tile_identity_pb2.TILE_SOURCE_UNSPECIFIED),
            flight_id=tile.flight_id,
        ),
        location_hash=tile.location_hash,
        latitude=tile.latitude,
        longitude=tile.longitude,
        tile_size_meters=tile.tile_size_meters,
        tile_size_pixels=tile.tile_size_pixels,
        file_path=tile.file_path,
        content_sha256=tile.content_sha256 or "",
        disk_bytes=tile.disk_bytes,
        captured_at=timestamp(tile.captured_at),
        created_at=timestamp(tile.created_at),
        accessed_at=timestamp(tile.accessed_at),
        uploaded_at=timestamp(tile.uploaded_at),
        freshness_label=LABEL_NUMBERS[tile.freshness_label],
    )
    if tile.quality_metadata is not None:
        quality = json.loads(tile.quality_metadata)
        message.quality_metadata.SetInParent()  # so that an empty object is told as one
        # Rows from before 0002 may hold any JSON.
        message.quality_metadata.update(
            quality if isinstance(quality, dict) else {"value": quality}
        )
    return message


def label_number(label: FreshnessLabel | None) -> tile_metadata_store_pb2.FreshnessLabel.ValueType:
    """A label as its number; that of no label for None."""
    if label is None:
        return tile_metadata_store_pb2.FRESHNESS_LABEL_UNSPECIFIED
    return LABEL_NUMBERS[label.value]


@overload
def timestamp(moment: datetime) -> Timestamp: ...
@overload
def timestamp(moment: None) -> None: ...
def timestamp(moment: datetime | None) -> Timestamp | None:
    """A moment as a message."""
    if moment is None:
        return None
    seconds, micros = divmod((moment - _EPOCH) // _MICROSECOND, 1_000_000)
    return Timestamp(seconds=seconds, nanos=micros * 1_000)


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
