"""Encoding of new tiles in PostgreSQL's binary COPY format.

psycopg encodes a row value by value. Here the columns of fixed size are packed by one call,
and the columns that many rows share are cached.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Final

from tilecache_daemon.models import FreshnessLabel, NewTile, micros_of

HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER: Final = b"\xff\xff"

_COLUMNS: Final = 19
_NULL: Final = b"\xff\xff\xff\xff"
_JSONB_VERSION: Final = b"\x01"
_SIZE: Final = struct.Struct(">i").pack
_TIME: Final = struct.Struct(">iq").pack
# The number of columns; two UUIDs, four integers, three doubles, a hash and three 64-bit
# integers, each after its size; and the size of the path.
_FIXED: Final = struct.Struct(
    ">h" + 2 * "i16s" + 4 * "ii" + 3 * "id" + "i64s" + 3 * "iq" + "i"
).pack

LabelledTile = tuple[NewTile, FreshnessLabel]
"""A tile to be stored, and its label."""


def pack_rows(tiles: Sequence[LabelledTile], created_at: datetime) -> bytes:
    """Rows with the columns of the statement `copy_tiles`, in its order."""
    created_us = micros_of(created_at)
    pieces: list[bytes] = []
    uuids = _uuids(tile.tile_uuid for tile, _ in tiles)
    hashes = _uuids(tile.location_hash for tile, _ in tiles)
    for (tile, label), tile_uuid, location_hash in zip(tiles, uuids, hashes, strict=True):
        # Local variables are faster than attributes.
        zoom, x, y, source, flight_id, latitude, longitude, edge, pixels = tile[2:11]
        file_path, sha256, disk_bytes, captured_us, quality, uploaded_us = tile[11:]
        path = file_path.encode()
        pieces += (
            _FIXED(
                _COLUMNS,
                *(16, tile_uuid, 16, location_hash),
                *(4, zoom, 4, x, 4, y, 4, pixels),
                *(8, latitude, 8, longitude, 8, edge),
                *(64, sha256.encode()),
                *(8, disk_bytes, 8, captured_us, 8, created_us),
                len(path),
            ),
            path,
            _NULL if quality is None else _sized(_JSONB_VERSION + quality.encode()),
            _pack_shared(source, flight_id, label),
            _NULL if uploaded_us is None else _TIME(8, uploaded_us),
        )
    return b"".join(pieces)


def _uuids(texts: Iterable[str]) -> Iterator[bytes]:
    """The sixteen bytes of each UUID."""
    joined = bytes.fromhex("".join(texts).replace("-", ""))
    return (joined[start : start + 16] for start in range(0, len(joined), 16))


@lru_cache(maxsize=256)
def _pack_shared(source: str, flight_id: str | None, label: FreshnessLabel) -> bytes:
    flight = _NULL if flight_id is None else _sized(bytes.fromhex(flight_id.replace("-", "")))
    return _sized(source.encode()) + flight + _sized(label.value.encode())


def _sized(data: bytes) -> bytes:
    return _SIZE(len(data)) + data
