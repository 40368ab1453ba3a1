"""New tiles in the binary format of COPY, as PostgreSQL's manual describes it.

psycopg writes a row value by value; here all that has a fixed size is packed at once,
and what many rows have in common is kept.
"""

import struct
from collections.abc import Iterable
from datetime import datetime
from functools import lru_cache
from typing import Final, NamedTuple

from tilecache_daemon.models import NewTile, micros_of

HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER: Final = b"\xff\xff"

_COLUMNS: Final = 18
_NULL: Final = b"\xff\xff\xff\xff"
_JSONB_VERSION: Final = b"\x01"
_SIZE: Final = struct.Struct(">i").pack
# Two ids, four integers, three doubles, a hash, and three 64-bit integers, each after its size.
_FIXED: Final = struct.Struct(">h" + 2 * "i16s" + 4 * "ii" + 3 * "id" + "i64s" + 3 * "iq").pack


class LabelledTile(NamedTuple):
    """A tile to be stored and the label that it gets."""

    tile: NewTile
    label: str


def pack_rows(tiles: Iterable[LabelledTile], created_at: datetime) -> bytes:
    """Rows of the columns that the statement `copy_tiles` names, in its order."""
    created_us = micros_of(created_at)
    pieces: list[bytes] = []
    for tile, label in tiles:
        pieces += (
            _FIXED(
                _COLUMNS,
                *(16, bytes.fromhex(tile.tile_uuid.replace("-", ""))),
                *(16, bytes.fromhex(tile.location_hash.replace("-", ""))),
                *(4, tile.zoom, 4, tile.x, 4, tile.y, 4, tile.tile_size_pixels),
                *(8, tile.latitude, 8, tile.longitude, 8, tile.tile_size_meters),
                *(64, tile.content_sha256.encode()),
                *(8, tile.disk_bytes, 8, tile.captured_us, 8, created_us),
            ),
            _sized(tile.file_path.encode()),
            _NULL
            if tile.quality_metadata is None
            else _sized(_JSONB_VERSION + tile.quality_metadata.encode()),
            _pack_kind(tile.source, tile.flight_id, label),
        )
    return b"".join(pieces)


@lru_cache(maxsize=256)
def _pack_kind(source: str, flight_id: str | None, label: str) -> bytes:
    flight = _NULL if flight_id is None else _sized(bytes.fromhex(flight_id.replace("-", "")))
    return _sized(source.encode()) + flight + _sized(label.encode())


def _sized(data: bytes) -> bytes:
    return _SIZE(len(data)) + data
