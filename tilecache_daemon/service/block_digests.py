"""Digests of blocks, by which two peers find where their tiles differ."""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

from tilecache_daemon.read_priority import ReadPriority
from tilecache_daemon.store.digests import BlockDigest, BlockPosition
from tilecache_daemon.store.store import Store

BLOCKS_PER_PAGE: Final = 512
"""Blocks that are found with one statement, which takes some milliseconds."""
BLOCKS_PER_STATEMENT: Final = 16
"""Blocks that are digested with one statement: full ones of one source take 50 ms."""
_BEFORE_ALL: Final = (-1, -1)


class BlockDigestService:
    """Reads the digests of blocks."""

    def __init__(self, store: Store, read_priority: ReadPriority) -> None:
        self._store = store
        self._read_priority = read_priority

    async def describe(
        self, zoom: int, is_wanted: Callable[[int, int], bool]
    ) -> AsyncIterator[list[BlockDigest]]:
        """All blocks of a zoom that have tiles and are wanted, some at a time, by their columns,
        then by their rows."""
        after = _BEFORE_ALL
        while True:
            async with self._store.connection() as queries:
                found = await queries.digests.next_blocks(zoom, after, BLOCKS_PER_PAGE)
            if not found:
                return
            after = found[-1]
            wanted = [block for block in found if is_wanted(*block)]
            async for digests in self.describe_blocks(zoom, wanted, detail=False):
                yield digests

    async def describe_blocks(
        self, zoom: int, blocks: Sequence[BlockPosition], *, detail: bool
    ) -> AsyncIterator[list[BlockDigest]]:
        """These blocks, some at a time, in order. Those without tiles are left out."""
        async for some in self._read_priority.in_batches(blocks, BLOCKS_PER_STATEMENT):
            async with self._store.connection() as queries:
                yield await queries.digests.digest_blocks(zoom, some, detail=detail)
