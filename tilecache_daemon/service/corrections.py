"""Correcting the metadata of stored tiles whose content is unchanged."""

from collections.abc import Sequence
from typing import Final

from tilecache_daemon.clock import Clock
from tilecache_daemon.errors import InvalidRequestError
from tilecache_daemon.models import TileUpdate, UpdateOutcome, micros_of
from tilecache_daemon.service.freshness import FreshnessService
from tilecache_daemon.service.insertion import future_violation, latest_capture_us
from tilecache_daemon.service.retries import retry_on_conflict
from tilecache_daemon.store.store import Queries, Store
from tilecache_daemon.store.tiles import Comparison

_FIELD: Final = "tiles[{}].captured_at"


class CorrectionService:
    """Corrects capture times, paths and quality metadata."""

    def __init__(self, store: Store, freshness: FreshnessService, clock: Clock) -> None:
        self._store = store
        self._freshness = freshness
        self._clock = clock

    async def update(self, updates: Sequence[TileUpdate], *, dry_run: bool) -> list[UpdateOutcome]:
        """Corrects and relabels tiles in one transaction; an outcome for each, in order. Each tile
        is given once. Raises InvalidRequestError for captures in the future."""
        self._check_captures(updates)

        async def write() -> list[UpdateOutcome]:
            async with self._store.transaction() as queries:
                return await self._update(queries, updates, dry_run=dry_run)

        return await retry_on_conflict(write)

    def _check_captures(self, updates: Sequence[TileUpdate]) -> None:
        latest_us = latest_capture_us(self._clock)
        violations = [
            future_violation(_FIELD.format(index), update.captured_at)
            for index, update in enumerate(updates)
            if update.captured_at and micros_of(update.captured_at) > latest_us
        ]
        if violations:
            raise InvalidRequestError(*violations)

    async def _update(
        self, queries: Queries, updates: Sequence[TileUpdate], *, dry_run: bool
    ) -> list[UpdateOutcome]:
        # In the order in which all writers take these locks; rows are locked after them.
        await queries.freshness.lock_policy_for_share()
        await queries.evictions.lock_files_for_naming()
        listed = await queries.evictions.find_listed_files(
            update.file_path for update in updates if update.file_path
        )
        stored = await queries.tiles.compare_updates(updates)
        outcomes = [_outcome(update, stored.get(update.tile_uuid), listed) for update in updates]
        chosen = [
            update
            for update, outcome in zip(updates, outcomes, strict=True)
            if outcome is UpdateOutcome.UPDATED
        ]
        if chosen and not dry_run:
            trusted = self._clock.trusted
            if not trusted:
                self._freshness.used_untrusted_clock = True
            await queries.tiles.update_tiles(chosen, self._clock.now(), clock_trusted=trusted)
        return outcomes


def _outcome(
    update: TileUpdate, stored: Comparison | None, listed_files: set[str]
) -> UpdateOutcome:
    if stored is None:
        return UpdateOutcome.NOT_FOUND
    if not stored.has_content:
        return UpdateOutcome.CONTENT_DIFFERS
    if not stored.differs:
        return UpdateOutcome.UNCHANGED
    # The file of a stored tile is never listed, so this is another path.
    if update.file_path in listed_files:
        return UpdateOutcome.FILE_PENDING_REMOVAL
    return UpdateOutcome.UPDATED
