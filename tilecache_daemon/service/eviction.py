"""Eviction of the least recently used tiles.

One statement deletes a tile's row and lists its file for removal. After a crash at any
point, every file either has a row or is listed. The statement checks again what was chosen.

"""

import math
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
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
"""Candidates per transaction: some ten milliseconds of work."""

PINNED_KNOWN_S: Final = 10.0
"""How long an eviction on insert relies on where the pinned tiles end."""

_START: Final = (-(2**63), 0)


class EvictionStop(Enum):
    """Why an eviction ended."""

    GOAL_MET = "goal_met"
    PENDING_UPLOADS = "pending_uploads"
    PINNED = "pinned"
    EMPTY = "empty"


@dataclass(frozen=True, slots=True)
class EvictionGoal:
    """Either a ceiling for the used bytes, or a number of bytes to free."""

    max_used_bytes: int | None = None
    free_bytes: int | None = None


@dataclass(slots=True)
class EvictionSummary:
    """The result of an eviction, updated after each transaction."""

    dry_run: bool
    evicted_count: int = 0
    freed_bytes: int = 0
    used_bytes: int = 0
    pending_upload_count: int = 0
    locked_count: int = 0
    """Candidates that were skipped because they were used or locked meanwhile."""
    pinned_count: int = 0
    pin_names: list[str] = field(default_factory=list)
    """The pins that hold them."""
    stops: list[EvictionStop] = field(default_factory=list)
    """Why it ended, all reasons; empty while it runs."""


@dataclass(frozen=True, slots=True)
class Included:
    """Tiles that are kept unless they are included."""

    pending: bool = False
    """Those that wait for upload."""
    pinned: bool = False


class EvictionService:
    """Evicts tiles, and maintains the list of files to be removed."""

    def __init__(self, store: Store, accesses: AccessLog, clock: Clock) -> None:
        self._store = store
        self._accesses = accesses
        self._clock = clock
        self._listeners: list[Callable[[list[timedelta]], None]] = []
        self._pinned = _PinnedTiles([], -math.inf)

    def on_evicted(self, listener: Callable[[list[timedelta]], None]) -> None:
        """Calls `listener` with the ages of evicted tiles: the time since they were last
        used, or stored if they never were."""
        self._listeners.append(listener)

    async def evict(
        self,
        goal: EvictionGoal,
        summary: EvictionSummary,
        *,
        include_pending_uploads: bool = False,
        include_pinned: bool = False,
        reason: EvictionReason = EvictionReason.EVICTED,
    ) -> AsyncIterator[list[Eviction]]:
        """Yields the evicted tiles of each transaction, and updates `summary`.

        A dry run selects the same tiles and changes nothing. If the caller stops early, the
        tiles evicted so far remain listed.
        """
        # Accesses that are not written yet must count, too.
        await self._accesses.flush()
        include = Included(pending=include_pending_uploads, pinned=include_pinned)
        pinned = await self._find_pinned()
        on_insert = reason is EvictionReason.EVICTED_ON_INSERT
        position = start = pinned.end if on_insert else _START
        while not summary.stops:
            async with self._store.transaction() as queries:
                if not summary.dry_run:
                    await queries.evictions.lock_eviction()
                    await queries.evictions.lock_files_for_listing()
                need = await self._measure(queries, goal, summary)
                if need <= 0:
                    summary.stops = [EvictionStop.GOAL_MET]
                    return
                candidates = await queries.evictions.list_evictable(
                    position,
                    BATCH_TILES,
                    include_pending=include.pending,
                    include_pinned=include.pinned,
                )
                if on_insert and position == start:
                    await pinned.note(queries, candidates)
                if not candidates:
                    summary.stops = [EvictionStop.EMPTY]
                    if not on_insert:
                        summary.stops = await _find_reasons(queries, summary, include)
                    return
                chosen = _choose(candidates, need)
                position = (chosen[-1].access_order, chosen[-1].id)
                evicted = await remove(
                    queries, chosen, reason, self._clock, include, dry_run=summary.dry_run
                )
            if not summary.dry_run:
                self._notify(evicted, chosen)
            summary.evicted_count += len(evicted)
            summary.locked_count += len(chosen) - len(evicted)
            summary.freed_bytes += sum(eviction.disk_bytes or 0 for eviction in evicted)
            summary.used_bytes -= sum(eviction.disk_bytes or 0 for eviction in evicted)
            yield evicted

    async def list_evictions(
        self, after_id: int, limit: int, file_paths: Sequence[str] = ()
    ) -> list[Eviction]:
        """Files to be removed, oldest eviction first; only these if any are given."""
        async with self._store.connection() as queries:
            return await queries.evictions.list_evictions(after_id, limit, file_paths)

    async def confirm(self, ids: Sequence[int]) -> list[bool]:
        """Removes evictions from the list; returns whether each was listed, in order."""
        async with self._store.connection() as queries:
            confirmed = await queries.evictions.confirm_evictions(ids)
        return [eviction_id in confirmed for eviction_id in ids]

    async def _find_pinned(self) -> "_PinnedTiles":
        """Ends the pins whose time has come. Where the least recently used tiles end that the
        others hold, as far as it is known."""
        async with self._store.connection() as queries:
            pins = await queries.pins.end_pins(self._clock.now(), clock_trusted=self._clock.trusted)
        now_s = self._clock.monotonic()
        if self._pinned.pins != pins or now_s - self._pinned.since_s > PINNED_KNOWN_S:
            self._pinned = _PinnedTiles(pins, now_s)
        return self._pinned

    def _notify(self, evicted: Sequence[Eviction], chosen: Sequence[Candidate]) -> None:
        created_at = {tile.tile_uuid: tile.created_at for tile, _, _ in chosen}
        for listener in self._listeners:
            listener(
                [
                    eviction.evicted_at - (eviction.accessed_at or created_at[eviction.tile_uuid])
                    for eviction in evicted
                ]
            )

    async def _measure(self, queries: Queries, goal: EvictionGoal, summary: EvictionSummary) -> int:
        """How many bytes are still to be freed; updates the used bytes of `summary`."""
        used_bytes = await queries.usage.read_used_bytes()
        if summary.dry_run:
            used_bytes -= summary.freed_bytes
        summary.used_bytes = used_bytes
        if goal.max_used_bytes is not None:
            return used_bytes - goal.max_used_bytes
        return (goal.free_bytes or 0) - summary.freed_bytes


class _PinnedTiles:
    """Where the least recently used tiles end that pins hold, so that not every insert under a
    full ceiling passes over them again. A tile that is used goes behind the end. One that is
    uploaded may come before it, so the end is found anew after PINNED_KNOWN_S."""

    def __init__(self, pins: list[int], since_s: float) -> None:
        self.pins = pins
        self.since_s = since_s
        self.end = _START

    async def note(self, queries: Queries, candidates: Sequence[Candidate]) -> None:
        """Notes the first tiles that are not pinned; if there are none, all are."""
        if not self.pins:
            return
        if candidates:
            self.end = (candidates[0].access_order, candidates[0].id - 1)
        elif last := await queries.evictions.find_last_evictable():
            self.end = max(self.end, last)


async def _find_reasons(
    queries: Queries, summary: EvictionSummary, include: Included
) -> list[EvictionStop]:
    """Why no more tiles can be evicted."""
    reasons = []
    if not include.pending:
        summary.pending_upload_count = await queries.usage.read_pending_uploads()
    if summary.pending_upload_count or summary.locked_count:
        reasons.append(EvictionStop.PENDING_UPLOADS)
    if not include.pinned:
        summary.pinned_count, summary.pin_names = await queries.pins.count_pinned_evictable(
            include_pending=include.pending
        )
    if summary.pinned_count:
        reasons.append(EvictionStop.PINNED)
    return reasons or [EvictionStop.EMPTY]


async def remove(
    queries: Queries,
    chosen: Sequence[Candidate],
    reason: EvictionReason,
    clock: Clock,
    include: Included,
    *,
    dry_run: bool,
) -> list[Eviction]:
    """Deletes the rows of tiles and lists their files for removal. A dry run returns the same
    evictions, without ids, and changes nothing."""
    if not dry_run:
        return await queries.evictions.evict_tiles(
            chosen,
            reason,
            clock.now(),
            include_pending=include.pending,
            include_pinned=include.pinned,
        )
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


def is_pending_upload(tile: Tile) -> bool:
    """Whether the tile was made onboard and is not uploaded yet, so that no copy exists."""
    return tile.source == ONBOARD_INGEST and tile.uploaded_us is None


def _choose(candidates: Sequence[Candidate], need: int) -> list[Candidate]:
    """The first candidates that free `need` bytes together, or all."""
    for count, candidate in enumerate(candidates, start=1):
        need -= candidate.tile.disk_bytes or 0
        if need <= 0:
            return list(candidates[:count])
    return list(candidates)
