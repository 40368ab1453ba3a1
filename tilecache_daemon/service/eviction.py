"""Making room: the least recently used tiles go first.

A tile's row goes and its file is listed for removal in one statement; so a
crash at any point leaves each file either with a row or on the list.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import Final

from tilecache.identity import ONBOARD_INGEST
from tilecache_daemon.clock import Clock
from tilecache_daemon.models import Eviction, EvictionReason, Tile
from tilecache_daemon.service.access_log import AccessLog
from tilecache_daemon.store.evictions import Candidate
from tilecache_daemon.store.store import Queries, Store

BATCH_TILES: Final = 2_000
"""Tiles that one transaction looks at: some ten milliseconds of work."""

_START: Final = (-(2**63), 0)


class EvictionStop(Enum):
    """Why an eviction ended."""

    GOAL_MET = "goal_met"
    PENDING_UPLOADS = "pending_uploads"
    EMPTY = "empty"


@dataclass(frozen=True, slots=True)
class EvictionGoal:
    """Exactly one of both: a ceiling to go below, or bytes to free."""

    max_used_bytes: int | None = None
    free_bytes: int | None = None


@dataclass(slots=True)
class EvictionSummary:
    """How an eviction went."""

    dry_run: bool
    evicted_count: int = 0
    freed_bytes: int = 0
    used_bytes: int = 0
    pending_upload_count: int = 0
    held_count: int = 0
    stop: EvictionStop | None = None


class EvictionService:
    """Evicts, and keeps the list of files to be removed."""

    def __init__(self, store: Store, accesses: AccessLog, clock: Clock) -> None:
        self._store = store
        self._accesses = accesses
        self._clock = clock
        self._listeners: list[Callable[[list[timedelta]], None]] = []

    def on_evicted(self, listener: Callable[[list[timedelta]], None]) -> None:
        """`listener` is told of evicted tiles how long ago they were last used, or
        stored if they never were."""
        self._listeners.append(listener)

    async def evict(
        self,
        goal: EvictionGoal,
        summary: EvictionSummary,
        *,
        include_pending_uploads: bool = False,
        reason: EvictionReason = EvictionReason.EVICTED,
    ) -> AsyncIterator[list[Eviction]]:
        """What went, a transaction at a time; fills `summary` as it goes.

        A dry run chooses as a run would and changes nothing. Whoever stops
        half-way leaves what went by then on the list.
        """
        # What was used just now must not count as unused.
        await self._accesses.flush()
        place = _START
        while summary.stop is None:
            async with self._store.transaction() as queries:
                if not summary.dry_run:
                    await queries.evictions.lock_eviction()
                need = await self._measure(queries, goal, summary)
                if need <= 0:
                    summary.stop = EvictionStop.GOAL_MET
                    return
                candidates = await queries.evictions.list_evictable(place, BATCH_TILES)
                if not candidates:
                    left = summary.pending_upload_count + summary.held_count
                    summary.stop = EvictionStop.PENDING_UPLOADS if left else EvictionStop.EMPTY
                    return
                chosen, place = _choose(candidates, need, summary, include_pending_uploads)
                gone = await remove(queries, chosen, reason, self._clock, dry_run=summary.dry_run)
            if not summary.dry_run:
                self._tell(gone, chosen)
            summary.evicted_count += len(gone)
            summary.held_count += len(chosen) - len(gone)
            summary.freed_bytes += sum(eviction.disk_bytes or 0 for eviction in gone)
            summary.used_bytes -= sum(eviction.disk_bytes or 0 for eviction in gone)
            yield gone

    async def list_evictions(self, after_id: int, limit: int) -> list[Eviction]:
        """Files to be removed, oldest eviction first."""
        async with self._store.connection() as queries:
            return await queries.evictions.list_evictions(after_id, limit)

    async def confirm(self, ids: Sequence[int]) -> list[bool]:
        """Takes evictions off the list; whether each was on it, in order."""
        async with self._store.connection() as queries:
            confirmed = await queries.evictions.confirm_evictions(ids)
        return [eviction_id in confirmed for eviction_id in ids]

    def _tell(self, gone: Sequence[Eviction], chosen: Sequence[Candidate]) -> None:
        created_at = {tile.tile_uuid: tile.created_at for tile, _, _ in chosen}
        for listener in self._listeners:
            listener(
                [
                    eviction.evicted_at - (eviction.accessed_at or created_at[eviction.tile_uuid])
                    for eviction in gone
                ]
            )

    async def _measure(self, queries: Queries, goal: EvictionGoal, summary: EvictionSummary) -> int:
        """How many bytes have yet to go."""
        used_bytes = await queries.usage.read_used_bytes()
        if summary.dry_run:
            used_bytes -= summary.freed_bytes
        summary.used_bytes = used_bytes
        if goal.max_used_bytes is not None:
            return used_bytes - goal.max_used_bytes
        return (goal.free_bytes or 0) - summary.freed_bytes


async def remove(
    queries: Queries,
    chosen: Sequence[Candidate],
    reason: EvictionReason,
    clock: Clock,
    *,
    dry_run: bool,
) -> list[Eviction]:
    """Takes tiles out and lists their files; in a dry run only says so."""
    if not dry_run:
        return await queries.evictions.evict_tiles(chosen, reason, clock.now())
    now = clock.now()
    return [
        Eviction(
            0,
            *(tile.tile_uuid, tile.zoom, tile.x, tile.y, tile.source, tile.flight_id),
            *(tile.file_path, tile.content_sha256, tile.disk_bytes),
            *(now, tile.accessed_at, reason.value),
        )
        for tile in (candidate.tile for candidate in chosen)
    ]


def waits_for_upload(tile: Tile) -> bool:
    """Whether what the tile holds is nowhere else."""
    return tile.source == ONBOARD_INGEST and tile.uploaded_us is None


def _choose(
    candidates: Sequence[Candidate],
    need: int,
    summary: EvictionSummary,
    include_pending_uploads: bool,
) -> tuple[list[Candidate], tuple[int, int]]:
    """The first candidates that may go until `need` bytes are freed, and the place
    of the last that was looked at. What frees nothing stays."""
    chosen = []
    for candidate in candidates:
        tile = candidate.tile
        if waits_for_upload(tile) and not include_pending_uploads:
            summary.pending_upload_count += 1
        elif tile.disk_bytes:
            chosen.append(candidate)
            need -= tile.disk_bytes
            if need <= 0:
                break
    return chosen, (candidate.access_order, candidate.id)
