"""Which tiles a request names, from its bytes.

Most name their tiles by canonical ids. Their bytes have one form, and are looked at as they
are: protobuf takes longer to unpack them than memory to find the tiles.
"""

import re
from collections.abc import Sequence
from typing import Final

import numpy as np

from tilecache.v1.tile_metadata_store_pb2 import (
    GetTileRequest,
    LookupTilesRequest,
    TileRef,
    TouchTilesRequest,
)
from tilecache_daemon.rpc import requests
from tilecache_daemon.store.tile_ids import TEXT_SIZE, TileIds

_REF: Final = LookupTilesRequest(tiles=[TileRef(tile_uuid="-" * TEXT_SIZE)]).SerializeToString()
_PLAIN_REF: Final = _REF[:-TEXT_SIZE]
"""A reference by id, up to the id; it is field 1 of all three requests."""
_RECORD_ACCESS: Final = LookupTilesRequest(record_access=True).SerializeToString()
"""Field 2 of those that have it."""
_PLAIN_GET: Final = re.compile(
    b"%b(%b)(%b)?" % (re.escape(_PLAIN_REF), requests.UUID_TEXT.pattern.encode(), _RECORD_ACCESS)
)


def unpack_get(data: bytes) -> tuple[str, bool]:
    """The id that a GetTileRequest names, and `record_access`."""
    if plain := _PLAIN_GET.fullmatch(data):
        return plain[1].decode(), plain[2] is not None
    request = GetTileRequest.FromString(data)
    return requests.tile_ref("tile", request.tile), request.record_access


def unpack_lookup(most: int, data: bytes) -> tuple[TileIds, bool]:
    """As `unpack_get`, of a LookupTilesRequest with so many references at most."""
    if plain := _plain_refs(data):
        requests.check_count("tiles", len(plain[0]), most)
        return plain
    request = LookupTilesRequest.FromString(data)
    return _ids(request.tiles, most), request.record_access


def unpack_touch(most: int, data: bytes) -> TileIds:
    """As `unpack_lookup`, of a TouchTilesRequest."""
    if plain := _plain_refs(data):
        requests.check_count("tiles", len(plain[0]), most)
        return plain[0]
    return _ids(TouchTilesRequest.FromString(data).tiles, most)


def _plain_refs(data: bytes) -> tuple[TileIds, bool] | None:
    """The ids of references in field 1 and `record_access` in field 2, if each is a canonical
    id. They are looked at together."""
    count, rest = divmod(len(data), len(_PLAIN_REF) + TEXT_SIZE)
    size = len(data) - rest
    if not count or data[size:] not in (b"", _RECORD_ACCESS):
        return None
    rows = np.frombuffer(data, dtype=np.uint8, count=size).reshape(count, -1)
    is_plain = (rows[:, : len(_PLAIN_REF)] == np.frombuffer(_PLAIN_REF, dtype=np.uint8)).all()
    ids = TileIds.parse(rows[:, len(_PLAIN_REF) :]) if is_plain else None
    return (ids, rest > 0) if ids else None


def _ids(refs: Sequence[TileRef], most: int) -> TileIds:
    requests.check_count("tiles", len(refs), most)
    return TileIds.of([requests.tile_ref(f"tiles[{index}]", ref) for index, ref in enumerate(refs)])
