"""Digests of tiles and of blocks of tiles, which are equal on any machine.

The definition and the locked vectors stand in tilecache/v1/block_digest.proto.
"""

from __future__ import annotations

import struct
from hashlib import sha256
from typing import Final, Iterable
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp

from tilecache.v1 import block_digest_pb2
from tilecache.v1.tile_metadata_store_pb2 import TileMetadata

_SCHEME: Final = block_digest_pb2.DESCRIPTOR.GetOptions().Extensions[block_digest_pb2.block_digest]

SHORT_DIGEST_BYTES: Final = 8
"""So much of a tile's digest is in `BlockDigest.tile_digests`."""
_HEX_DIGITS: Final = frozenset("0123456789abcdef")
_NO_CONTENT: Final = bytes(32)


class DigestProofError(Exception):
    """A locked vector is not met."""


def tile_record(tile_uuid: str, content_sha256: str, captured_at: Timestamp) -> bytes:
    """What is digested of a tile; begins with its id. Raises ValueError for a malformed id."""
    captured_us = captured_at.seconds * 1_000_000 + captured_at.nanos // 1_000
    is_known = len(content_sha256) == 64 and _HEX_DIGITS.issuperset(content_sha256)
    content = bytes.fromhex(content_sha256) if is_known else _NO_CONTENT
    return UUID(tile_uuid).bytes + content + struct.pack(">q", captured_us)


def record_of(tile: TileMetadata) -> bytes:
    """As `tile_record`, of a tile as the daemon answers it."""
    return tile_record(tile.tile_uuid, tile.content_sha256, tile.captured_at)


def digest_tile(record: bytes) -> bytes:
    """The digest of a tile."""
    return sha256(record).digest()


def digest_block(records: Iterable[bytes]) -> bytes:
    """The digest of all tiles of a block, in any order."""
    return sha256(b"".join(sorted(records))).digest()


def prove_block_digests() -> None:
    """Digests the locked vectors; raises DigestProofError if one differs."""
    if not _SCHEME.vectors:
        raise DigestProofError("the scheme carries no locked vectors")
    for vector in _SCHEME.vectors:
        records = []
        for tile in vector.tiles:
            record = tile_record(tile.tile_uuid, tile.content_sha256, tile.captured_at)
            _check(tile.tile_uuid, digest_tile(record), tile.digest)
            records.append(record)
        _check(f"a block of {len(records)} tiles", digest_block(records), vector.digest)


def _check(name: str, digest: bytes, locked: str) -> None:
    if digest.hex() != locked:
        raise DigestProofError(f"{name} gives {digest.hex()}, but {locked} is locked")
