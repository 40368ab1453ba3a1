"""From models to messages, and to the bytes of messages.

A repeated field's wire form is the concatenation of its elements'. Every answer
that carries tiles has them in field 1; so a tile is packed once, as an element
of field 1, and an answer is a join of such elements.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
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

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND: Final = timedelta(microseconds=1)
_POSTGRES_EPOCH_US: Final = (POSTGRES_EPOCH - _EPOCH) // _MICROSECOND
_DOUBLES: Final = struct.Struct("<BdBdBd").pack
_NO_RESULT: Final = b"\x0a\x00"
_LABEL_BYTES: Final = {label: bytes((0x78, number)) for label, number in LABEL_NUMBERS.items()}


def pack_element(message: bytes) -> bytes:
    """A message as an element of field 1 of another."""
    return b"\x0a%b%b" % (_varint(len(message)), message)


def pack_results(elements: Iterable[bytes | None]) -> bytes:
    """The whole of a LookupTilesResponse: a result for each tile, empty for a miss."""
    pieces: list[bytes] = []
    for element in elements:
        if element is None:
            pieces.append(_NO_RESULT)
        else:
            size = len(element)
            header = _SIZES[size] if size < _MOST_SIZES else _varint(size)
            pieces += (b"\x0a", header, element)
    return b"".join(pieces)


def pack_tile(tile: Tile) -> bytes:
    """A tile as an element of field 1: TileMetadata, encoded by hand.

    Building a message first takes twice as long, and most of the time that a
    region takes when it is first asked for. The tags are those of the .proto: a
    field's number times eight, and its wire type.
    """
    # fmt: off
    (tile_uuid, location_hash, zoom, x, y, source, flight_id, latitude, longitude, edge, pixels,
     file_path, sha256, disk_bytes, captured, created, accessed, uploaded, label, quality) = tile
    # fmt: on
    path = file_path.encode()
    key = (
        _pack_number(b"\x08", zoom)
        + _pack_number(b"\x10", x)
        + _pack_number(b"\x18", y)
        + _pack_source(source, flight_id)
    )
    body = b"\x0a\x24%b\x12%c%b\x1a\x24%b%b%b\x42%b%b%b%b%b%b%b%b%b%b" % (
        tile_uuid.encode(),
        len(key),
        key,
        location_hash.encode(),
        _DOUBLES(0x21, latitude, 0x29, longitude, 0x31, edge),
        _pack_number(b"\x38", pixels),
        _SIZES[len(path)] if len(path) < _MOST_SIZES else _varint(len(path)),
        path,
        b"\x4a\x40" + sha256.encode() if sha256 else b"",
        b"" if disk_bytes is None else b"\x50" + _varint(disk_bytes),
        _pack_time(b"\x5a", captured),
        _pack_time(b"\x62", created),
        b"" if accessed is None else _pack_time(b"\x6a", accessed),
        b"" if uploaded is None else _pack_time(b"\x72", uploaded),
        _LABEL_BYTES[label],
        b"" if quality is None else _pack_quality(quality),
    )
    size = len(body)
    return b"\x0a%b%b" % (_SIZES[size] if size < _MOST_SIZES else _varint(size), body)


@lru_cache(maxsize=8_192)
def _pack_number(tag: bytes, number: int) -> bytes:
    return tag + _varint(number) if number else b""


@lru_cache(maxsize=256)
def _pack_source(source: str, flight_id: str | None) -> bytes:
    number = SOURCE_NUMBERS.get(source, tile_identity_pb2.TILE_SOURCE_UNSPECIFIED)
    flight = b"" if flight_id is None else b"\x2a\x24" + flight_id.encode()
    return b"\x20" + _varint(number) + flight


@lru_cache(maxsize=8_192)
def _pack_time(tag: bytes, micros: int) -> bytes:
    packed = _timestamp(_POSTGRES_EPOCH_US + micros).SerializeToString()
    return b"%b%c%b" % (tag, len(packed), packed)


def _pack_quality(text: str) -> bytes:
    message, quality = Struct(), json.loads(text)
    # Rows from before 0002 may hold any JSON.
    message.update(quality if isinstance(quality, dict) else {"value": quality})
    packed = message.SerializeToString()
    return b"\x82\x01%b%b" % (_varint(len(packed)), packed)


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
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


_MOST_SIZES: Final = 4_096
_SIZES: Final = [_varint(number) for number in range(_MOST_SIZES)]
"""Looked up where a call would take longer than all the rest of a field."""
