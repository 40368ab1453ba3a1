"""From models to messages, and to the bytes of messages.

A repeated field's wire form is the concatenation of its elements'. Every answer
that carries tiles has them in field 1; so a tile is packed once, as an element
of field 1, and an answer is a join of such elements.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from itertools import repeat
from typing import Final, TypeVar, overload

from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from tilecache.v1 import tile_identity_pb2, tile_metadata_store_pb2

from tilecache_daemon.identity import SOURCE_NUMBERS
from tilecache_daemon.models import (
    UNIX_SECONDS_AT_2000,
    FreshnessLabel,
    Tile,
    TileColumns,
    micros_of,
)

LABEL_NUMBERS: Final = {
    label.value: tile_metadata_store_pb2.FreshnessLabel.Value(f"FRESHNESS_LABEL_{label.name}")
    for label in FreshnessLabel
}

Value = TypeVar("Value")

_DOUBLE: Final = struct.Struct("<Bd").pack
_join: Final = b"".join
_NO_RESULT: Final = b"\x0a\x00"


def pack_results(elements: Iterable[bytes | None]) -> bytes:
    """The whole of a LookupTilesResponse: a result for each tile, empty for a miss."""
    return _join(
        [
            _NO_RESULT if element is None else b"\x0a%b%b" % (_varint(len(element)), element)
            for element in elements
        ]
    )


def pack_tiles(tiles: TileColumns) -> list[bytes]:
    """Each tile as an element of field 1: TileMetadata, encoded by hand.

    Building messages first takes several times as long, and most of the time that a
    region takes when it is first asked for. So does a loop over the tiles: neighbours
    have many values in common, and each is encoded once. The tags are those of the
    .proto: a field's number times eight, and its wire type.
    """
    keys = list(
        map(
            _join,
            zip(
                _each(tiles.zoom, _pack_number, 0x08),
                _each(tiles.x, _pack_number, 0x10),
                _each(tiles.y, _pack_number, 0x18),
                _each(list(zip(tiles.source, tiles.flight_id, strict=True)), _pack_source, 0x20),
                strict=True,
            ),
        )
    )
    paths = list(map(str.encode, tiles.file_path))
    fields = zip(
        map(str.encode, tiles.tile_uuid),
        _sizes(keys),
        keys,
        map(str.encode, tiles.location_hash),
        _each(tiles.latitude, _pack_double, 0x21),
        _each(tiles.longitude, _pack_double, 0x29),
        _each(tiles.tile_size_meters, _pack_double, 0x31),
        _each(tiles.tile_size_pixels, _pack_number, 0x38),
        _sizes(paths),
        paths,
        map(_pack_sha256, tiles.content_sha256),
        map(_pack_disk_bytes, tiles.disk_bytes),
        _each(tiles.captured_us, _pack_time, 0x5A),
        _each(tiles.created_us, _pack_time, 0x62),
        _each(tiles.accessed_us, _pack_time, 0x6A),
        _each(tiles.uploaded_us, _pack_time, 0x72),
        _each(tiles.freshness_label, _pack_label, 0x78),
        _each(tiles.quality_metadata, _pack_quality, 0x82),
        strict=True,
    )
    bodies = [
        b"\x0a\x24%b\x12%b%b\x1a\x24%b%b%b%b%b\x42%b%b%b%b%b%b%b%b%b%b" % of_tile
        for of_tile in fields
    ]
    return [b"\x0a%b%b" % sized for sized in zip(_sizes(bodies), bodies, strict=True)]


def _each(
    values: Sequence[Value], pack: Callable[[int, Value], bytes], tag: int
) -> Iterator[bytes]:
    """Each value packed; equal ones once."""
    packed = {value: pack(tag, value) for value in set(values)}
    if len(packed) == 1:
        return repeat(packed[values[0]], len(values))
    return map(packed.__getitem__, values)


def _sizes(packed: Sequence[bytes]) -> Iterator[bytes]:
    return map(_varint, map(len, packed))


def _pack_number(tag: int, number: int) -> bytes:
    return b"%c%b" % (tag, _varint(number)) if number else b""


def _pack_source(tag: int, maker: tuple[str, str | None]) -> bytes:
    source, flight_id = maker
    number = SOURCE_NUMBERS.get(source, tile_identity_pb2.TILE_SOURCE_UNSPECIFIED)
    flight = b"" if flight_id is None else b"\x2a\x24" + flight_id.encode()
    return b"%c%b%b" % (tag, _varint(number), flight)


def _pack_double(tag: int, number: float) -> bytes:
    return _DOUBLE(tag, number)


def _pack_label(tag: int, label: str) -> bytes:
    return bytes((tag, LABEL_NUMBERS[label]))


def _pack_sha256(text: str | None) -> bytes:
    return b"\x4a\x40" + text.encode() if text else b""


def _pack_disk_bytes(number: int | None) -> bytes:
    return b"" if number is None else b"\x50" + _varint(number)


def _pack_time(tag: int, micros: int | None) -> bytes:
    if micros is None:
        return b""
    packed = _timestamp(micros).SerializeToString()
    return b"%c%c%b" % (tag, len(packed), packed)


def _pack_quality(tag: int, text: str | None) -> bytes:
    if text is None:
        return b""
    message, quality = Struct(), json.loads(text)
    # Rows from before 0002 may hold any JSON.
    message.update(quality if isinstance(quality, dict) else {"value": quality})
    packed = message.SerializeToString()
    return b"%c\x01%b%b" % (tag, _varint(len(packed)), packed)


def with_access(element: bytes, accessed_at: datetime) -> bytes:
    """A packed tile with another time of its last use."""
    answer = tile_metadata_store_pb2.GetTileResponse.FromString(element)
    answer.tile.accessed_at.CopyFrom(timestamp(accessed_at))
    return answer.SerializeToString()


def tile_messages(tiles: Iterable[Tile]) -> Iterable[tile_metadata_store_pb2.TileMetadata]:
    """Tiles as messages."""
    packed = _join(pack_tiles(TileColumns.of(tiles)))
    return tile_metadata_store_pb2.QueryTilesResponse.FromString(packed).tiles


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
    return None if moment is None else _timestamp(micros_of(moment))


def _timestamp(micros: int) -> Timestamp:
    seconds, rest = divmod(micros, 1_000_000)
    return Timestamp(seconds=UNIX_SECONDS_AT_2000 + seconds, nanos=rest * 1_000)


class _Varints(dict[int, bytes]):
    """Numbers as protobuf writes them: seven bits a byte, the last seven first. Those
    that occur often, which are sizes, are kept: a look takes less time than a sum."""

    def __missing__(self, number: int) -> bytes:
        last, rest = number & 0x7F, number >> 7
        packed = bytes((last | 0x80,)) + self[rest] if rest else bytes((last,))
        if number < _KEPT_VARINTS:
            self[number] = packed
        return packed


_KEPT_VARINTS: Final = 1 << 15
_varint: Final = _Varints().__getitem__
