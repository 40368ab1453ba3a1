"""Deleting tiles that nobody wants any more, whatever their use."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from typing import Final, NamedTuple

from tilecache.mercator import CellRectangle
from tilecache_daemon.clock import Clock
from tilecache_daemon.models import Eviction, EvictionReason, Purge
from tilecache_daemon.service.conflicts import retried
from tilecache_daemon.service.eviction import BATCH_TILES, remove, waits_for_upload
from tilecache_daemon.store.evictions import Candidate, EvictionQueries
from tilecache_daemon.store.store import Store

_FIRST_CELL: Final = (-1, -1, 0)
_FIRST_CAPTURE: Final = (datetime(1, 1, 1, tzinfo=timezone.utc), 0)


class Area(NamedTuple):
    """Cells of a zoom: those of a rectangle that pass a test."""

    zoom: int
    cells: CellRectangle
    holds: Callable[[int, int], bool]


@dataclass(slots=True)
class DeletionSummary:
    """How a deletion went."""

    dry_run: bool
    deleted_count: int = 0
    freed_bytes: int = 0
    pending_upload_count: int = 0
    not_found: list[str] = field(default_factory=list)


class PurgeService:
    """Deletes in batches, each a transaction. The files are listed for removal."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def delete_by_id(
        self, tile_uuids: Sequence[str], summary: DeletionSummary, *, include_pending: bool
    ) -> AsyncIterator[list[Eviction]]:
        """What went; `summary` names the ids that name no tile."""
        for start in range(0, len(tile_uuids), BATCH_TILES):
            wanted = tile_uuids[start : start + BATCH_TILES]
            found, gone = await self._delete(
                partial(EvictionQueries.list_deletable_by_id, tile_uuids=wanted),
                summary,
                include_pending=include_pending,
            )
            known = {candidate.tile.tile_uuid for candidate in found}
            summary.not_found += [tile_uuid for tile_uuid in wanted if tile_uuid not in known]
            yield gone

    async def delete_in(
        self,
        areas: Sequence[Area],
        purge: Purge,
        summary: DeletionSummary,
        *,
        include_pending: bool,
    ) -> AsyncIterator[list[Eviction]]:
        """What went of some areas. The cost follows what lies there, not their size."""
        for area in areas:
            place = _FIRST_CELL
            while True:
                found, gone = await self._delete(
                    partial(
                        EvictionQueries.list_deletable,
                        zoom=area.zoom,
                        cells=area.cells,
                        purge=purge,
                        after=place,
                        limit=BATCH_TILES,
                    ),
                    summary,
                    area.holds,
                    include_pending=include_pending,
                )
                if not found:
                    break
                place = (found[-1].tile.x, found[-1].tile.y, found[-1].id)
                yield gone

    async def delete_anywhere(
        self,
        zooms: Sequence[int],
        purge: Purge,
        summary: DeletionSummary,
        *,
        include_pending: bool,
    ) -> AsyncIterator[list[Eviction]]:
        """What went of all places, oldest capture first."""
        place = _FIRST_CAPTURE
        while True:
            found, gone = await self._delete(
                partial(
                    EvictionQueries.list_deletable_by_capture,
                    zooms=zooms,
                    purge=purge,
                    after=place,
                    limit=BATCH_TILES,
                ),
                summary,
                include_pending=include_pending,
            )
            if not found:
                return
            place = (found[-1].tile.captured_at, found[-1].id)
            yield gone

    async def _delete(
        self,
        list_deletable: Callable[..., Awaitable[list[Candidate]]],
        summary: DeletionSummary,
        holds: Callable[[int, int], bool] = lambda _x, _y: True,
        *,
        include_pending: bool,
    ) -> tuple[list[Candidate], list[Eviction]]:
        """The tiles that were found, and those that went. What is to be deleted does not stay
        because it is used at the moment: it is waited for."""

        async def step() -> tuple[list[Candidate], int, list[Eviction]]:
            async with self._store.transaction() as queries:
                found = await list_deletable(queries.evictions, hold=not summary.dry_run)
                within = [entry for entry in found if holds(entry.tile.x, entry.tile.y)]
                chosen = [
                    entry for entry in within if include_pending or not waits_for_upload(entry.tile)
                ]
                gone = await remove(
                    queries, chosen, EvictionReason.DELETED, self._clock, dry_run=summary.dry_run
                )
            return found, len(within) - len(chosen), gone

        found, pending_upload_count, gone = await retried(step)
        summary.pending_upload_count += pending_upload_count
        summary.deleted_count += len(gone)
        summary.freed_bytes += sum(eviction.disk_bytes or 0 for eviction in gone)
        return found, gone
