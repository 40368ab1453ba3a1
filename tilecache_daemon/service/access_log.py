"""Uses of tiles, gathered in memory and written in batches.

A write for each read would wear out the disk; so an access is written within
`interval_s`, and not at all if one of the same tile was written less than
`recent_s` ago. A crash loses at most that much.

Many are written in turns, and neighbours in different ones: a row's new version then
takes the room in its page that an older version of another row has left. Elsewhere it
would make the table grow, and be logged in full. Their order is fixed before the first
turn.
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

BATCH_ACCESSES: Final = 5_000
TURN_ACCESSES: Final = 500
MAX_PENDING: Final = 1_000_000

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class AccessLog:
    """Which tiles were used since the last write, in the order of their last use."""

    def __init__(
        self, store: Store, cache: TileCache, clock: Clock, *, interval_s: float, recent_s: float
    ) -> None:
        self._store = store
        self._cache = cache
        self._clock = clock
        self._interval_s = interval_s
        self._recent = timedelta(seconds=recent_s)
        self._pending: dict[str, datetime] = {}
        self._turns: list[list[Access]] = []
        self._flushing = asyncio.Lock()

    @property
    def loss_bound_s(self) -> float:
        """Accesses younger than this may be lost in a crash."""
        return self._interval_s + self._recent.total_seconds()

    @property
    def pending_count(self) -> int:
        """Accesses that are not yet written."""
        return len(self._pending) + sum(map(len, self._turns))

    def record(self, tile_uuids: Iterable[str]) -> None:
        """Notes that tiles were used now. Beyond MAX_PENDING the oldest notes are dropped."""
        now = self._clock.now()
        for tile_uuid in tile_uuids:
            self._pending.pop(tile_uuid, None)
            self._pending[tile_uuid] = now
        for tile_uuid in list(islice(self._pending, max(0, len(self._pending) - MAX_PENDING))):
            del self._pending[tile_uuid]

    async def flush(self) -> None:
        """Writes what is noted; what cannot be written now stays noted."""
        async with self._flushing:
            held: list[Access] = []
            try:
                while self._turns or self._pending:
                    if not self._turns:
                        await self._number()
                    while self._turns:
                        held += await self._write(self._turns[0])
                        del self._turns[0]
            finally:
                self._note_again(held)

    async def _number(self) -> None:
        """Takes the oldest notes, and fixes their order before the first is written."""
        batch = dict(islice(self._pending.items(), BATCH_ACCESSES))
        async with self._store.connection() as queries:
            due = await queries.tiles.number_accesses(batch, self._recent)
        turns = ceil(len(due) / TURN_ACCESSES)
        self._turns = [[use for use in due if use.id % turns == turn] for turn in range(turns)]
        for tile_uuid, accessed_at in batch.items():
            if self._pending.get(tile_uuid) == accessed_at:
                del self._pending[tile_uuid]

    async def _write(self, turn: Sequence[Access]) -> list[Access]:
        """Gives those that it had to pass over."""
        async with self._store.transaction(own_accesses=True) as queries:
            written = await queries.tiles.write_accesses(turn)
        await self._cache.note_accesses(
            {access.tile_uuid: access.accessed_at for access in turn if access.id in written}
        )
        return [access for access in turn if access.id not in written]

    def _note_again(self, held: Iterable[Access]) -> None:
        """Before all that was used since."""
        in_order = sorted(held, key=attrgetter("access_order"))
        earlier = {access.tile_uuid: access.accessed_at for access in in_order}
        for tile_uuid in self._pending:
            earlier.pop(tile_uuid, None)
        self._pending = earlier | self._pending

    async def run(self) -> None:
        """Flushes for ever, until cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self.flush()
            except TileCacheError as error:
                log.warning("accesses_not_written", waiting=self.pending_count, cause=str(error))
