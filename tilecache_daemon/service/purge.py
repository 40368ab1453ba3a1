"""Deletion of tiles by id, by region or by filter, however recently they were used."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NamedTuple

from tilecache.mercator import CellRectangle
from tilecache_daemon.clock import Clock
from tilecache_daemon.models import Eviction, EvictionReason, ExpectedFile, Purge, Tile
from tilecache_daemon.service.eviction import BATCH_TILES, Included, is_pending_upload, remove
from tilecache_daemon.service.retries import retry_on_conflict
from tilecache_daemon.store.evictions import Candidate, EvictionQueries
from tilecache_daemon.store.store import Queries, Store

_FIRST_CELL: Final = (-1, -1, 0)
_FIRST_CAPTURE: Final = (-(2**63), 0)


class PurgeArea(NamedTuple):
    """Cells of a zoom: those of a rectangle for which `contains(x, y)` holds."""

    zoom: int
    cells: CellRectangle
    contains: Callable[[int, int], bool]


@dataclass(slots=True)
class DeletionSummary:
    """The result of a deletion, updated after each transaction."""

    dry_run: bool
    deleted_count: int = 0
    freed_bytes: int = 0
    pending_upload_count: int = 0
    pinned_count: int = 0
    pin_names: set[str] = field(default_factory=set)
    """The pins that hold them."""
    not_found: list[str] = field(default_factory=list)
    changed_count: int = 0
    """Tiles that were kept because they have another file than expected."""


class PurgeService:
    """Deletes tiles, one transaction per batch, and lists their files for removal."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def delete_by_id(
        self,
        tile_uuids: Sequence[str],
        summary: DeletionSummary,
        *,
        include: Included,
        expected: Mapping[str, ExpectedFile],
    ) -> AsyncIterator[list[Eviction]]:
        """Yields the deleted tiles of each transaction. Unknown ids go to `summary.not_found`.
        Those that are expected to have a file are kept if they have another one by now."""

        def is_as_expected(tile: Tile) -> bool:
            stored = ExpectedFile(tile.file_path, tile.content_sha256 or "")
            return expected.get(tile.tile_uuid, stored) == stored

        for start in range(0, len(tile_uuids), BATCH_TILES):
            wanted = tile_uuids[start : start + BATCH_TILES]
            found, deleted = await self._delete(
                partial(EvictionQueries.list_deletable_by_id, tile_uuids=wanted),
                summary,
                is_as_expected,
                include=include,
            )
            summary.changed_count += sum(not is_as_expected(each.tile) for each in found)
            known = {candidate.tile.tile_uuid for candidate in found}
            summary.not_found += [tile_uuid for tile_uuid in wanted if tile_uuid not in known]
            yield deleted

    async def delete_in(
        self,
        areas: Sequence[PurgeArea],
        purge: Purge,
        summary: DeletionSummary,
        *,
        include: Included,
    ) -> AsyncIterator[list[Eviction]]:
        """As `delete_by_id`, within some areas. The cost depends on the number of tiles, not
        on the size of the areas."""
        for area in areas:

            def is_within(tile: Tile, area: PurgeArea = area) -> bool:
                return area.contains(tile.x, tile.y)

            position = _FIRST_CELL
            while True:
                found, deleted = await self._delete(
                    partial(
                        EvictionQueries.list_deletable,
                        zoom=area.zoom,
                        cells=area.cells,
                        purge=purge,
                        after=position,
                        limit=BATCH_TILES,
                    ),
                    summary,
                    is_within,
                    include=include,
                )
                if not found:
                    break
                position = (found[-1].tile.x, found[-1].tile.y, found[-1].id)
                yield deleted

    async def delete_anywhere(
        self,
        zooms: Sequence[int],
        purge: Purge,
        summary: DeletionSummary,
        *,
        include: Included,
    ) -> AsyncIterator[list[Eviction]]:
        """As `delete_by_id`, without a region, oldest capture first."""
        position = _FIRST_CAPTURE
        while True:
            found, deleted = await self._delete(
                partial(
                    EvictionQueries.list_deletable_by_capture,
                    zooms=zooms,
                    purge=purge,
                    after=position,
                    limit=BATCH_TILES,
                ),
                summary,
                include=include,
            )
            if not found:
                return
            position = (found[-1].tile.captured_us, found[-1].id)
            yield deleted

    async def _delete(
        self,
        list_deletable: Callable[..., Awaitable[list[Candidate]]],
        summary: DeletionSummary,
        is_wanted: Callable[[Tile], bool] = lambda _: True,
        *,
        include: Included,
    ) -> tuple[list[Candidate], list[Eviction]]:
        """The tiles that were listed, and those that were deleted. Locked rows are waited for,
        not skipped: a tile is deleted even if it is being used."""

        async def delete_batch() -> _Batch:
            async with self._store.transaction() as queries:
                if not summary.dry_run:
                    await queries.evictions.lock_files_for_listing()
                found = await list_deletable(queries.evictions, lock=not summary.dry_run)
                wanted = [entry for entry in found if is_wanted(entry.tile)]
                kept = await _find_kept(queries, wanted, include)
                deleted = await remove(
                    queries,
                    [entry for entry in wanted if entry.id not in kept],
                    EvictionReason.DELETED,
                    self._clock,
                    include,
                    dry_run=summary.dry_run,
                )
            return _Batch(found, kept, deleted)

        batch = await retry_on_conflict(delete_batch)
        for pins in batch.kept.values():
            summary.pin_names.update(pins)
            summary.pinned_count += bool(pins)
            summary.pending_upload_count += not pins
        summary.deleted_count += len(batch.deleted)
        summary.freed_bytes += sum(eviction.disk_bytes or 0 for eviction in batch.deleted)
        return batch.found, batch.deleted


class _Batch(NamedTuple):
    """What a transaction found, kept and deleted."""

    found: list[Candidate]
    kept: dict[int, list[str]]
    deleted: list[Eviction]


async def _find_kept(
    queries: Queries, tiles: Sequence[Candidate], include: Included
) -> dict[int, list[str]]:
    """The tiles that are not to be deleted, by row id: each with the names of the pins that hold
    it, or without if it waits for upload."""
    kept: dict[int, list[str]] = {}
    if not include.pending:
        kept = {entry.id: [] for entry in tiles if is_pending_upload(entry.tile)}
    if not include.pinned:
        kept |= await queries.pins.find_pinned([entry.id for entry in tiles])
    return kept
