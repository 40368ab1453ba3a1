"""Accesses of tiles, collected in memory and written in batches.

A write for each read would wear out the disk. So an access is written within
`interval_s`, and not at all if another one of the same tile was written less than
`recent_s` before it. A crash loses at most that much.

Neighbouring rows are written in different transactions: then a row's new version
takes the space in its page that an older version of another row has left (a HOT
update). Otherwise the table would grow and the write-ahead log would hold whole
pages. The order of use is fixed before the first of these transactions.
"""

import asyncio
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from itertools import islice
from math import ceil
from operator import attrgetter
from typing import Final

import structlog

from tilecache_daemon.cache.tile_cache import TileCache
from tilecache_daemon.clock import Clock
from tilecache_daemon.errors import TileCacheError
from tilecache_daemon.store.store import Store
from tilecache_daemon.store.tiles import Access

NUMBERED_ACCESSES: Final = 5_000
"""Accesses whose order of use is fixed by one statement."""
BATCH_ACCESSES: Final = 500
"""Accesses that one transaction writes."""
MAX_PENDING: Final = 1_000_000

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class AccessLog:
    """The tiles that were used since the last write, in the order of their last use."""

    def __init__(
        self, store: Store, cache: TileCache, clock: Clock, *, interval_s: float, recent_s: float
    ) -> None:
        self._store = store
        self._cache = cache
        self._clock = clock
        self._interval_s = interval_s
        self._recent = timedelta(seconds=recent_s)
        self._pending: dict[str, datetime] = {}
        self._batches: list[list[Access]] = []
        self._flushing = asyncio.Lock()

    @property
    def loss_bound_s(self) -> float:
        """Accesses younger than this may be lost in a crash."""
        return self._interval_s + self._recent.total_seconds()

    @property
    def pending_count(self) -> int:
        """Accesses that are not yet written."""
        return len(self._pending) + sum(map(len, self._batches))

    def record(self, tile_uuids: Iterable[str]) -> None:
        """Records that tiles are used now. Beyond MAX_PENDING the oldest records are dropped."""
        now = self._clock.now()
        for tile_uuid in tile_uuids:
            self._pending.pop(tile_uuid, None)
            self._pending[tile_uuid] = now
        for tile_uuid in list(islice(self._pending, max(0, len(self._pending) - MAX_PENDING))):
            del self._pending[tile_uuid]

    async def flush(self) -> None:
        """Writes what is pending when it begins, so that it ends also under constant use; what
        cannot be written stays pending."""
        async with self._flushing:
            locked: list[Access] = []
            try:
                await self._write_batches(locked)
                remaining = len(self._pending)
                while remaining > 0:
                    count = min(remaining, NUMBERED_ACCESSES)
                    await self._number(count)
                    await self._write_batches(locked)
                    remaining -= count
            finally:
                self._record_again(locked)

    async def run(self) -> None:
        """Flushes until cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self.flush()
            except TileCacheError as error:
                log.warning("accesses_not_written", waiting=self.pending_count, cause=str(error))

    async def _number(self, count: int) -> None:
        """Takes the oldest records and fixes their order before the first is written."""
        oldest = dict(islice(self._pending.items(), count))
        async with self._store.connection() as queries:
            due = await queries.tiles.number_accesses(oldest, self._recent)
        batches = ceil(len(due) / BATCH_ACCESSES)
        self._batches = [
            [access for access in due if access.id % batches == index] for index in range(batches)
        ]
        for tile_uuid, accessed_at in oldest.items():
            if self._pending.get(tile_uuid) == accessed_at:
                del self._pending[tile_uuid]

    async def _write_batches(self, locked: list[Access]) -> None:
        """Adds to `locked` the accesses of rows that another writer has locked."""
        while self._batches:
            locked += await self._write(self._batches[0])
            del self._batches[0]

    async def _write(self, batch: Sequence[Access]) -> list[Access]:
        async with self._store.transaction(own_accesses=True) as queries:
            written = await queries.tiles.write_accesses(batch)
        await self._cache.note_accesses(
            {access.tile_uuid: access.accessed_at for access in batch if access.id in written}
        )
        return [access for access in batch if access.id not in written]

    def _record_again(self, accesses: Iterable[Access]) -> None:
        """As older than everything that was recorded since."""
        in_order = sorted(accesses, key=attrgetter("access_order"))
        earlier = {access.tile_uuid: access.accessed_at for access in in_order}
        for tile_uuid in self._pending:
            earlier.pop(tile_uuid, None)
        self._pending = earlier | self._pending
