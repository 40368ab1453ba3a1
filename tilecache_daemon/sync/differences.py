"""Which tiles of another daemon are to be fetched.

Only what differs is transferred: first the digests of blocks, then those of the tiles of the blocks
that differ, then the tiles that differ.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple
from uuid import UUID

from tilecache.v1.tile_metadata_store_pb2 import Region, TileMetadata
from tilecache_daemon.sync.peer import Block, Peer, in_batches

BATCH_TILES: Final = 1_000
_MAX_BATCH_BYTES: Final = 3_000_000
_MAX_BLOCKS: Final = 1_024
_MAX_TILES: Final = 50_000
"""Of the blocks that are compared tile by tile at once."""


@dataclass
class Comparison:
    """What was compared so far."""

    blocks: int = 0
    """Blocks of the other side."""
    differing_blocks: int = 0
    differing_tiles: int = 0
    """Tiles of the other side that this side lacks or has otherwise."""
    kept_tiles: int = 0
    """Those of them that are later here."""


class Newer(NamedTuple):
    """A tile that the other side has and this side is to get."""

    tile: TileMetadata
    stored: TileMetadata | None
    """What this side has under its key."""

    @property
    def has_new_content(self) -> bool:
        return self.stored is None or self.stored.content_sha256 != self.tile.content_sha256


def find_newer_tiles(
    here: Peer,
    there: Peer,
    zooms: Sequence[int],
    region: Region | None,
    comparison: Comparison,
) -> Iterator[list[Newer]]:
    """The tiles that `there` has and `here` lacks, or has in an earlier version, in batches."""
    for zoom in zooms:
        blocks = _differing_blocks(here, there, zoom, region, comparison)
        for some in _groups(blocks):
            tile_uuids = _differing_tiles(here, there, zoom, some)
            for batch in in_batches(tile_uuids, BATCH_TILES):
                yield from _parts(_newer(here, there, batch, comparison))


def supersedes(tile: TileMetadata, stored: TileMetadata) -> bool:
    """Whether a tile replaces the stored one with ON_CONFLICT_CONVERGE."""
    return _order(tile) > _order(stored)


def _order(tile: TileMetadata) -> tuple[int, int, str]:
    return tile.captured_at.seconds, tile.captured_at.nanos // 1_000, tile.content_sha256


def _differing_blocks(
    here: Peer, there: Peer, zoom: int, region: Region | None, comparison: Comparison
) -> list[Block]:
    digests = {block.position: block.digest for block in here.describe_blocks(zoom, region)}
    differing = []
    for block in there.describe_blocks(zoom, region):
        comparison.blocks += 1
        if digests.get(block.position) != block.digest:
            differing.append(block)
    comparison.differing_blocks += len(differing)
    return differing


def _groups(blocks: Iterable[Block]) -> Iterator[list[Block]]:
    group: list[Block] = []
    for block in blocks:
        count = sum(each.tile_count for each in group)
        if group and (len(group) == _MAX_BLOCKS or count + block.tile_count > _MAX_TILES):
            yield group
            group = []
        group.append(block)
    if group:
        yield group


def _differing_tiles(here: Peer, there: Peer, zoom: int, blocks: Sequence[Block]) -> list[str]:
    positions = [block.position for block in blocks]
    digests = here.digest_tiles(zoom, positions)
    return [
        str(UUID(bytes=tile_uuid))
        for tile_uuid, digest in there.digest_tiles(zoom, positions).items()
        if digests.get(tile_uuid) != digest
    ]


def _parts(newer: list[Newer]) -> Iterator[list[Newer]]:
    """The tiles in batches that fit into a message."""
    if len(newer) > 1 and sum(each.tile.ByteSize() for each in newer) > _MAX_BATCH_BYTES:
        middle = len(newer) // 2
        yield from _parts(newer[:middle])
        yield from _parts(newer[middle:])
    elif newer:
        yield newer


def _newer(
    here: Peer, there: Peer, tile_uuids: Sequence[str], comparison: Comparison
) -> list[Newer]:
    comparison.differing_tiles += len(tile_uuids)
    pairs = zip(there.look_up(tile_uuids), here.look_up(tile_uuids), strict=True)
    newer = [
        Newer(tile, stored)
        for tile, stored in pairs
        if tile is not None and (stored is None or supersedes(tile, stored))
    ]
    comparison.kept_tiles += len(tile_uuids) - len(newer)
    return newer
