"""From models to messages, and to the bytes of messages.

A repeated field's wire form is the concatenation of its elements'. Every answer
that carries tiles has them in field 1; so a tile is packed once, as an element
of field 1, and an answer is a join of such elements.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from typing import Final, overload

from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from tilecache.v1 import tile_identity_pb2, tile_metadata_store_pb2

from tilecache_daemon.identity import SOURCE_NUMBERS
from tilecache_daemon.models import POSTGRES_EPOCH, FreshnessLabel, Tile

LABEL_NUMBERS: Final = {
    label.value: tile_metadata_store_pb2.FreshnessLabel.Value(f"FRESHNESS_LABEL_{label.name}")
    for label in FreshnessLabel
}

CHUNK_BYTES: Final = 1024 * 1024
"""Well below the 4 MiB that a gRPC client takes unless it is told otherwise."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND: Final = timedelta(microseconds=1)
_POSTGRES_EPOCH_US: Final = (POSTGRES_EPOCH - _EPOCH) // _MICROSECOND
_DOUBLES: Final = struct.Struct("<BdBdBd").pack
_SMALL: Final = [bytes((number,)) for number in range(0x80)]
_LABEL_BYTES: Final = {label: bytes((number,)) for label, number in LABEL_NUMBERS.items()}


def pack_element(message: bytes) -> bytes:
    """A message as an element of field 1 of another."""
    return b"\x0a%b%b" % (_varint(len(message)), message)


def pack_tile(tile: Tile) -> bytes:
    """A tile as an element of field 1: TileMetadata, encoded by hand.

    Building a message first takes twice as long, and most of the time that a
    region takes when it is first asked for. The tags are those of the .proto: a
    field's number times eight, and its wire type.
    """
    path = tile.file_path.encode()
    body = b"\x0a\x24%b%b\x1a\x24%b%b%b\x42%b%b%b%b%b%b%b\x78%b%b" % (
        tile.tile_uuid.encode(),
        _pack_key(tile),
        tile.location_hash.encode(),
        _DOUBLES(0x21, tile.latitude, 0x29, tile.longitude, 0x31, tile.tile_size_meters),
        _pack_number(b"\x38", tile.tile_size_pixels),
        _varint(len(path)),
        path,
        b"\x4a\x40" + tile.content_sha256.encode() if tile.content_sha256 else b"",
        b"" if tile.disk_bytes is None else b"\x50" + _varint(tile.disk_bytes),
        _pack_time(0x5A, tile.captured_us) + _pack_time(0x62, tile.created_us),
        b"" if tile.accessed_us is None else _pack_time(0x6A, tile.accessed_us),
        b"" if tile.uploaded_us is None else _pack_time(0x72, tile.uploaded_us),
        _LABEL_BYTES[tile.freshness_label],
        b"" if tile.quality_metadata is None else _pack_quality(tile.quality_metadata),
    )
    return b"\x0a%b%b" % (_varint(len(body)), body)


def _pack_key(tile: Tile) -> bytes:
    key = (
        _pack_number(b"\x08", tile.zoom)
        + _pack_number(b"\x10", tile.x)
        + _pack_number(b"\x18", tile.y)
        + _pack_source(tile.source, tile.flight_id)
    )
    return b"\x12%c%b" % (len(key), key)


@lru_cache(maxsize=8_192)
def _pack_number(tag: bytes, number: int) -> bytes:
    return tag + _varint(number) if number else b""


@lru_cache(maxsize=256)
def _pack_source(source: str, flight_id: str | None) -> bytes:
    number = SOURCE_NUMBERS.get(source, tile_identity_pb2.TILE_SOURCE_UNSPECIFIED)
    flight = b"" if flight_id is None else b"\x2a\x24" + flight_id.encode()
    return b"\x20" + _varint(number) + flight


@lru_cache(maxsize=8_192)
def _pack_time(tag: int, micros: int) -> bytes:
    packed = _timestamp(_POSTGRES_EPOCH_US + micros).SerializeToString()
    return b"%c%c%b" % (tag, len(packed), packed)


def _pack_quality(text: str) -> bytes:
    message, quality = Struct(), json.loads(text)
    # Rows from before 0002 may hold any JSON.
    message.update(quality if isinstance(quality, dict) else {"value": quality})
    packed = message.SerializeToString()
    return b"\x82\x01%b%b" % (_varint(len(packed)), packed)


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
    return tile_metadata_store_pb2.GetTileResponse.FromString(pack_tile(tile)).tile


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
    return None if moment is None else _timestamp((moment - _EPOCH) // _MICROSECOND)


def _timestamp(micros: int) -> Timestamp:
    seconds, rest = divmod(micros, 1_000_000)
    return Timestamp(seconds=seconds, nanos=rest * 1_000)


def _varint(number: int) -> bytes:
    if number < 0x80:
        return _SMALL[number]
    if number < 0x4000:
        return bytes((number & 0x7F | 0x80, number >> 7))
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
