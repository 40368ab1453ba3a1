"""How much is stored, and the ceiling that it stays under."""

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
"""Differences that may wait to be summed up: reading them takes about a millisecond."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Usage(NamedTuple):
    """What is stored, by every combination that occurs, beside the ceiling."""

    rows: list[UsageRow]
    pending_removal: tuple[int, int]
    max_used_bytes: int
    evict_on_insert: bool


class Room:
    """What still fits below the ceiling, while a transaction holds it."""

    def __init__(self, max_used_bytes: int, used_bytes: int) -> None:
        self._max_used_bytes = max_used_bytes
        self._used_bytes = used_bytes

    def fits(self, size: int) -> bool:
        """Whether so many bytes more stay under the ceiling. What shrinks always fits."""
        return (
            size <= 0 or not self._max_used_bytes or self._used_bytes + size <= self._max_used_bytes
        )

    def take(self, size: int) -> None:
        """Counts bytes that were stored, or given back if negative."""
        self._used_bytes += size

    def refusal(self, size: int) -> TileCacheError | None:
        """Why so many bytes more are refused, if they are."""
        if self.fits(size):
            return None
        ceiling = self._max_used_bytes
        if size > ceiling:
            return InvalidRequestError(
                FieldViolation("disk_bytes", f"is {size}, more than the ceiling of {ceiling}")
            )
        return StorageCeilingError(
            f"{self._used_bytes} bytes are used and {size} are asked, "
            f"but the ceiling is {ceiling}: evict first",
            used_bytes=self._used_bytes,
            asked_bytes=size,
            max_used_bytes=ceiling,
        )


class Ceiling:
    """The configured `max_used_bytes` (0: none) and what an insert does about it."""

    def __init__(
        self, store: Store, eviction: EvictionService, max_used_bytes: int, *, evict_on_insert: bool
    ) -> None:
        self._store = store
        self._eviction = eviction
        self.max_used_bytes = max_used_bytes
        self.evict_on_insert = evict_on_insert
        self._turn = asyncio.Lock()

    def turn(self) -> AbstractAsyncContextManager[None]:
        """Held by an insert while it may have to evict: room that it made is not another's."""
        return self._turn if self.evict_on_insert else nullcontext()

    async def measure(self, queries: Queries) -> Room:
        """What fits, which no other writer changes until the transaction ends."""
        if not self.max_used_bytes:
            return Room(0, 0)
        await queries.usage.lock_ceiling()
        return Room(self.max_used_bytes, await queries.usage.read_used_bytes())

    async def make_room(
        self, refusals: Collection[StorageCeilingError], kept_bytes: int = 0
    ) -> bool:
        """Evicts until what was refused fits, if that is switched on, but not below
        `kept_bytes`; whether it is worth trying again."""
        if not self.evict_on_insert:
            return False
        asked_bytes = sum(int(refusal.facts["asked_bytes"]) for refusal in refusals)
        goal = EvictionGoal(max_used_bytes=max(self.max_used_bytes - asked_bytes, kept_bytes))
        summary = EvictionSummary(dry_run=False)
        async for _ in self._eviction.evict(goal, summary, reason=EvictionReason.EVICTED_ON_INSERT):
            pass
        return summary.evicted_count > 0 or summary.stop is EvictionStop.GOAL_MET


class StorageService:
    """Tells the usage, and keeps it quick to tell."""

    def __init__(self, store: Store, ceiling: Ceiling) -> None:
        self._store = store
        self._ceiling = ceiling
        self._listeners: list[Callable[[Usage], None]] = []

    def on_usage(self, listener: Callable[[Usage], None]) -> None:
        """`listener` is told the usage every FOLD_INTERVAL_S, while `run` does."""
        self._listeners.append(listener)

    async def read_usage(self) -> Usage:
        """The usage now."""
        async with self._store.connection() as queries:
            return Usage(
                await queries.usage.read_usage(),
                await queries.usage.read_pending_removal(),
                self._ceiling.max_used_bytes,
                self._ceiling.evict_on_insert,
            )

    async def run(self) -> None:
        """Sums up differences for ever, until cancelled."""
        while True:
            try:
                async with self._store.transaction() as queries:
                    if await queries.usage.count_usage_rows() > FOLD_ROWS:
                        await queries.usage.fold_usage()
                await self._tell()
            except TileCacheError as error:
                log.debug("usage_not_folded", cause=str(error))
            await asyncio.sleep(FOLD_INTERVAL_S)

    async def _tell(self) -> None:
        if self._listeners:
            usage = await self.read_usage()
            for listener in self._listeners:
                listener(usage)
