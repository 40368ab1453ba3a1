"""Digests of blocks, which PostgreSQL computes: no tile travels for them."""

from collections.abc import Sequence
from typing import NamedTuple

from tilecache_daemon.store.statements import Statements

BlockPosition = tuple[int, int]
"""The column and the row of a block's cells, each without its last five bits."""


class BlockDigest(NamedTuple):
    """The tiles of a block in short, as `block_digest.proto` defines it."""

    block_x: int
    block_y: int
    tile_count: int
    digest: bytes
    tile_uuids: bytes
    """The ids of the tiles, 16 bytes each, sorted; empty without detail, as `tile_digests`."""
    tile_digests: bytes


class DigestQueries(Statements):
    """Queries on blocks of tiles."""

    async def next_blocks(self, zoom: int, after: BlockPosition, limit: int) -> list[BlockPosition]:
        """The next blocks of a zoom that have tiles, after a position."""
        parameters = {"zoom": zoom, "after_x": after[0], "after_y": after[1], "limit": limit}
        return [(x, y) for x, y in await self._rows("next_blocks", parameters)]

    async def digest_blocks(
        self, zoom: int, blocks: Sequence[BlockPosition], *, detail: bool
    ) -> list[BlockDigest]:
        """The digests of blocks, in order. Those without tiles are left out."""
        parameters = {
            "zoom": zoom,
            "block_x": [x for x, _ in blocks],
            "block_y": [y for _, y in blocks],
        }
        name = "digest_tiles" if detail else "digest_blocks"
        return list(map(BlockDigest._make, await self._binary_rows(name, parameters)))
