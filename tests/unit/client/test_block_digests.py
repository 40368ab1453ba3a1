"""The digests of tiles and blocks, against the vectors that the .proto locks."""

import random

import pytest

from tests.tiles import Block, sha256, tile, tile_uuid
from tilecache import block_digests
from tilecache.block_digests import (
    DigestProofError,
    digest_block,
    digest_tile,
    prove_block_digests,
    record_of,
)
from tilecache.v1 import block_digest_pb2
from tilecache.v1.block_digest_pb2 import BlockDigestScheme
from tilecache.v1.tile_metadata_store_pb2 import TileMetadata

SCHEME = block_digest_pb2.DESCRIPTOR.GetOptions().Extensions[block_digest_pb2.block_digest]


def stored_tile(column: int = 0, **fields: object) -> TileMetadata:
    """A tile as the daemon answers it."""
    key = Block().key(column)
    return tile(key, tile_uuid=tile_uuid(key), **fields)


def test_the_locked_vectors_are_met() -> None:
    prove_block_digests()


@pytest.mark.parametrize("part", ["tile", "block", "none"])
def test_a_vector_that_is_not_met_is_noticed(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    scheme = BlockDigestScheme()
    if part != "none":
        scheme.CopyFrom(SCHEME)
        changed = scheme.vectors[0] if part == "block" else scheme.vectors[0].tiles[0]
        changed.digest = sha256("something else")
    monkeypatch.setattr(block_digests, "_SCHEME", scheme)

    with pytest.raises(DigestProofError):
        prove_block_digests()


def test_the_vectors_tell_the_traps() -> None:
    tiles = [tile for vector in SCHEME.vectors for tile in vector.tiles]

    assert any(not tile.content_sha256 for tile in tiles), "an unknown content hash"
    assert any(tile.captured_at.seconds < 0 for tile in tiles), "a time before 1970"
    assert any(tile.captured_at.nanos % 1_000 for tile in tiles), "less than a microsecond"
    ids = [[tile.tile_uuid for tile in vector.tiles] for vector in SCHEME.vectors]
    assert any(some != sorted(some) for some in ids), "an order that is not that of the ids"


def test_the_order_of_the_tiles_does_not_matter() -> None:
    records = [record_of(stored_tile(column)) for column in range(20)]
    digest = digest_block(records)
    random.Random(1).shuffle(records)

    assert digest_block(records) == digest


def test_what_is_local_is_not_digested() -> None:
    one = stored_tile()
    other = TileMetadata()
    other.CopyFrom(one)
    other.file_path, other.disk_bytes, other.freshness_label = "elsewhere.png", 7, 4
    other.quality_metadata.update({"sharpness": 1})
    for name in ("created_at", "accessed_at", "uploaded_at"):
        getattr(other, name).GetCurrentTime()

    assert record_of(other) == record_of(one)


def test_content_and_capture_are_digested() -> None:
    one = stored_tile()
    others = [TileMetadata(), TileMetadata()]
    for other in others:
        other.CopyFrom(one)
    others[0].content_sha256 = sha256("another picture")
    others[1].captured_at.nanos = 1_000 * ((one.captured_at.nanos // 1_000 + 1) % 1_000_000)

    assert len({digest_tile(record_of(each)) for each in (one, *others)}) == 3
