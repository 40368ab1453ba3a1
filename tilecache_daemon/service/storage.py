"""Storage usage, and the ceiling that it must not exceed."""

import asyncio
from collections.abc import Callable, Collection
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Final, NamedTuple

import structlog

from tilecache.errors import FieldViolation
from tilecache_daemon.errors import InvalidRequestError, StorageCeilingError, TileCacheError
from tilecache_daemon.models import EvictionReason
from tilecache_daemon.service.eviction import (
    EvictionGoal,
    EvictionService,
    EvictionStop,
    EvictionSummary,
)
from tilecache_daemon.store.store import Queries, Store
from tilecache_daemon.store.usage import UsageRow

FOLD_INTERVAL_S: Final = 10.0
FOLD_ROWS: Final = 1_000
"""Usage is kept as differences. Beyond this number they are summed up; reading so many takes
about a millisecond."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Usage(NamedTuple):
    """Usage by combination of zoom, source, label and pending upload, and the ceiling."""

    rows: list[UsageRow]
    pending_removal: tuple[int, int]
    max_used_bytes: int
    evict_on_insert: bool


class Budget:
    """The bytes left under the ceiling (0: no ceiling), for a transaction that has locked it."""

    def __init__(self, max_used_bytes: int, used_bytes: int) -> None:
        self._max_used_bytes = max_used_bytes
        self._used_bytes = used_bytes

    def fits(self, size: int) -> bool:
        """Whether `size` more bytes fit under the ceiling. Negative sizes always fit."""
        return (
            size <= 0 or not self._max_used_bytes or self._used_bytes + size <= self._max_used_bytes
        )

    def reserve(self, size: int) -> None:
        """Counts `size` bytes as used; a negative size releases bytes."""
        self._used_bytes += size

    def refusal(self, size: int) -> TileCacheError | None:
        """The error for `size` more bytes, if they do not fit."""
        if self.fits(size):
            return None
        ceiling = self._max_used_bytes
        if size > ceiling:
            return InvalidRequestError(
                FieldViolation(
                    "disk_bytes", f"is {size}, must not exceed the storage ceiling ({ceiling})"
                )
            )
        return StorageCeilingError(
            f"{size} bytes do not fit: {self._used_bytes} of {ceiling} bytes are used; "
            "evict tiles first",
            used_bytes=self._used_bytes,
            asked_bytes=size,
            max_used_bytes=ceiling,
        )


class Ceiling:
    """The configured `max_used_bytes` (0: no ceiling), and the evictions that enforce it."""

    def __init__(
        self, store: Store, eviction: EvictionService, max_used_bytes: int, *, evict_on_insert: bool
    ) -> None:
        self._store = store
        self._eviction = eviction
        self.max_used_bytes = max_used_bytes
        self.evict_on_insert = evict_on_insert
        self._insert_lock = asyncio.Lock()

    def serialized_inserts(self) -> AbstractAsyncContextManager[None]:
        """One insert at a time where inserts evict: none uses the space that another one's
        eviction has freed."""
        return self._insert_lock if self.evict_on_insert else nullcontext()

    async def lock_budget(self, queries: Queries) -> Budget:
        """The bytes left; no other writer changes them until the transaction ends."""
        if not self.max_used_bytes:
            return Budget(0, 0)
        await queries.usage.lock_ceiling()
        return Budget(self.max_used_bytes, await queries.usage.read_used_bytes())

    async def make_room(
        self, refusals: Collection[StorageCeilingError], kept_bytes: int = 0
    ) -> bool:
        """Evicts tiles until the refused ones fit, but not below `kept_bytes`. Returns whether
        to retry the insert; False if `evict_on_insert` is off."""
        if not self.evict_on_insert:
            return False
        asked_bytes = sum(int(refusal.facts["asked_bytes"]) for refusal in refusals)
        goal = EvictionGoal(max_used_bytes=max(self.max_used_bytes - asked_bytes, kept_bytes))
        summary = EvictionSummary(dry_run=False)
        async for _ in self._eviction.evict(goal, summary, reason=EvictionReason.EVICTED_ON_INSERT):
            pass
        return summary.evicted_count > 0 or EvictionStop.GOAL_MET in summary.stops


class StorageService:
    """Reads the usage, and keeps reading it fast."""

    def __init__(self, store: Store, ceiling: Ceiling) -> None:
        self._store = store
        self._ceiling = ceiling
        self._listeners: list[Callable[[Usage], None]] = []

    def on_usage(self, listener: Callable[[Usage], None]) -> None:
        """Calls `listener` with the usage every FOLD_INTERVAL_S while `run` runs."""
        self._listeners.append(listener)

    async def read_usage(self) -> Usage:
        """The current usage."""
        async with self._store.connection() as queries:
            return Usage(
                await queries.usage.read_usage(),
                await queries.usage.read_pending_removal(),
                self._ceiling.max_used_bytes,
                self._ceiling.evict_on_insert,
            )

    async def run(self) -> None:
        """Sums up differences until cancelled."""
        while True:
            try:
                async with self._store.transaction() as queries:
                    if await queries.usage.count_usage_rows() > FOLD_ROWS:
                        await queries.usage.fold_usage()
                    if await queries.flights.count_usage_rows() > FOLD_ROWS:
                        await queries.flights.fold_usage()
                await self._notify()
            except TileCacheError as error:
                log.debug("usage_not_folded", cause=str(error))
            await asyncio.sleep(FOLD_INTERVAL_S)

    async def _notify(self) -> None:
        if self._listeners:
            usage = await self.read_usage()
            for listener in self._listeners:
                listener(usage)
