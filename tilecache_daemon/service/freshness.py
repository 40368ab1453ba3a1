"""Labelling new tiles, and re-evaluating the labels of stored ones."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

import structlog

from tilecache_daemon.clock import Clock
from tilecache_daemon.errors import TileCacheError, TileTooOldError
from tilecache_daemon.freshness_policy import FreshnessPolicy
from tilecache_daemon.models import FreshnessLabel, NewTile
from tilecache_daemon.service.retries import retry_on_conflict
from tilecache_daemon.store.freshness import RelabelProgress
from tilecache_daemon.store.store import Store

RELABEL_BATCH_TILES: Final = 2_000
CHECK_INTERVAL_S: Final = 5.0

log: structlog.stdlib.BoundLogger = structlog.get_logger()


@dataclass(slots=True)
class Reevaluation:
    """The progress of a re-evaluation, in tiles."""

    evaluated: int = 0
    relabelled: int = 0


class FreshnessService:
    """Applies the sectors and rules in force."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self.due = True
        """Whether stored labels may be out of date."""
        self.used_untrusted_clock = False
        """Whether labels were set while the clock was not trusted."""

    def label(self, tile: NewTile, policy: FreshnessPolicy) -> FreshnessLabel:
        """The label of a tile that is inserted now; raises TileTooOldError if its rule
        rejects it.

        A clock that is not trusted may be behind but not ahead. Tiles that are too old by it
        are too old; others may be, and are labelled `downgraded`.
        """
        if not policy.sectors:
            return FreshnessLabel.FRESH
        verdict = policy.evaluate(
            tile.latitude, tile.longitude, tile.captured_at, self._clock.now()
        )
        if verdict.label is FreshnessLabel.REJECTED and verdict.rule and verdict.sector:
            raise TileTooOldError(
                f"captured on {tile.captured_at:%Y-%m-%d}; sector {verdict.sector.name!r} "
                f"({verdict.rule.classification.value}) rejects tiles older than "
                f"{verdict.rule.max_age_months} months",
                sector=verdict.sector.name,
                classification=verdict.rule.classification.value,
                max_age_months=verdict.rule.max_age_months,
                captured_at=tile.captured_at.isoformat(),
            )
        if verdict.rule and not self._clock.trusted:
            self.used_untrusted_clock = True
            return FreshnessLabel.DOWNGRADED
        return verdict.label

    async def reevaluate(self) -> AsyncIterator[Reevaluation]:
        """Brings all labels up to date, one transaction per batch; yields the progress after
        each. If it does not complete, it remains `due`."""
        progress, last_id = Reevaluation(), 0
        self.due, self.used_untrusted_clock, complete = False, not self._clock.trusted, False
        try:
            while not complete:
                batch = await self._relabel(last_id)
                progress.evaluated += batch.evaluated
                progress.relabelled += batch.relabelled
                complete = batch.last_id is None
                last_id = batch.last_id or 0
                yield progress
        finally:
            self.due = self.due or not complete
        log.info("labels_up_to_date", evaluated=progress.evaluated, relabelled=progress.relabelled)

    async def run(self, interval_s: float) -> None:
        """Re-evaluates all labels when they are due, which they are at the start, when the
        clock is trusted again or was ahead, and every `interval_s`; until cancelled."""
        evaluated_at, corrections = self._clock.monotonic(), self._clock.corrections
        while True:
            trusted = self._clock.trusted
            if self._clock.corrections > corrections:
                self.due, corrections = True, self._clock.corrections
            age_s = self._clock.monotonic() - evaluated_at
            settled = self.used_untrusted_clock and trusted
            if self.due or settled or age_s >= interval_s:
                evaluated_at = self._clock.monotonic()
                try:
                    async for _ in self.reevaluate():
                        pass
                except TileCacheError as error:
                    log.warning("labels_not_evaluated", cause=str(error))
            await asyncio.sleep(CHECK_INTERVAL_S)

    async def _relabel(self, last_id: int) -> RelabelProgress:
        async def write() -> RelabelProgress:
            async with self._store.transaction() as queries:
                return await queries.freshness.relabel_tiles(
                    last_id,
                    RELABEL_BATCH_TILES,
                    self._clock.now(),
                    clock_trusted=self._clock.trusted,
                )

        return await retry_on_conflict(write)
