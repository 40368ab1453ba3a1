"""Sectors and rules: changing them, and explaining the label of a tile."""

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Final

import structlog

from tilecache.errors import FieldViolation
from tilecache_daemon.clock import Clock
from tilecache_daemon.errors import (
    InvalidRequestError,
    SectorNotFoundError,
    TileCacheError,
    TileNotFoundError,
)
from tilecache_daemon.freshness_policy import (
    FreshnessPolicy,
    FreshnessRule,
    Sector,
    SectorArea,
    SectorClassification,
    Verdict,
    add_months,
)
from tilecache_daemon.models import FreshnessLabel, Tile
from tilecache_daemon.service.freshness import FreshnessService
from tilecache_daemon.store.freshness import Relabelled
from tilecache_daemon.store.store import Queries, Store

COUNT_BATCH_TILES: Final = 10_000
RECENTLY_USED: Final = timedelta(days=7)

log: structlog.stdlib.BoundLogger = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a tile has its label, and when the label changes."""

    tile: Tile
    verdict: Verdict
    sectors: list[Sector]
    age: timedelta
    age_months: int
    next_change_at: datetime | None
    next_label: FreshnessLabel | None
    clock_trusted: bool

    @property
    def sentence(self) -> str:
        """The explanation as text for operators."""
        parts = (self._sector_text(), self._age_text(), self._change_text(), self._clock_text())
        return " ".join(filter(None, parts))

    def _sector_text(self) -> str:
        sector, rule = self.verdict.sector, self.verdict.rule
        if sector is None:
            return "The tile is outside all sectors, where nothing expires."
        text = f"The tile is in sector {sector.name!r} ({sector.classification.value})"
        if rule is None:
            return f"{text}, which has no rule."
        return f"{text}, whose rule {rule.action.value}s tiles after {rule.max_age_months} months."

    def _age_text(self) -> str:
        label = self.tile.freshness_label
        return (
            f"It was captured on {self.tile.captured_at:%Y-%m-%d}, "
            f"{self.age_months} whole months ago, and is labelled {label}."
        )

    def _change_text(self) -> str:
        if self.next_change_at and self.next_label:
            return f"It becomes {self.next_label.value} on {self.next_change_at:%Y-%m-%d}."
        if self.verdict.label.value != self.tile.freshness_label:
            return f"Under the current rules it would be {self.verdict.label.value}."
        return "The label does not change with time."

    def _clock_text(self) -> str:
        return "" if self.clock_trusted else "The clock is not trusted: the tile may be older."


class _RolledBackError(Exception):
    """Rolls a transaction back."""


def _roll_back() -> None:
    raise _RolledBackError


class PolicyService:
    """Changes the policy and re-evaluates all labels; explains the label of a tile."""

    def __init__(self, store: Store, freshness: FreshnessService, clock: Clock) -> None:
        self._store = store
        self._freshness = freshness
        self._clock = clock

    async def read(self) -> FreshnessPolicy:
        """The sectors, by name, and the rules, strictest classification first."""
        async with self._store.connection() as queries:
            return await queries.freshness.read_policy()

    async def try_sector(
        self, name: str, classification: SectorClassification, area: SectorArea
    ) -> tuple[Sector, list[Relabelled]]:
        """What `set_sector` would do; nothing is changed."""
        with suppress(_RolledBackError):
            async with self._store.transaction() as queries:
                now = self._clock.now()
                sector = await queries.freshness.set_sector(name, classification, area, now)
                relabelled = await self._count_relabelled(queries)
                _roll_back()
        return sector, relabelled

    async def try_rule(self, rule: FreshnessRule) -> list[Relabelled]:
        """What `set_rule` would do; nothing is changed."""
        with suppress(_RolledBackError):
            async with self._store.transaction() as queries:
                _check_order(await queries.freshness.read_policy(), rule)
                await queries.freshness.set_rule(rule)
                relabelled = await self._count_relabelled(queries)
                _roll_back()
        return relabelled

    async def set_sector(
        self, name: str, classification: SectorClassification, area: SectorArea
    ) -> tuple[Sector, int]:
        """Adds or changes a sector; returns it, and how many labels changed."""
        async with self._store.transaction() as queries:
            await queries.freshness.lock_policy_for_update()
            sector = await queries.freshness.set_sector(
                name, classification, area, self._clock.now()
            )
        return sector, await self._relabel()

    async def delete_sector(self, name: str) -> int:
        """Returns how many labels changed; raises SectorNotFoundError for an unknown name."""
        async with self._store.transaction() as queries:
            await queries.freshness.lock_policy_for_update()
            if not await queries.freshness.delete_sector(name):
                raise SectorNotFoundError(f"there is no sector {name!r}", name=name)
        return await self._relabel()

    async def set_rule(self, rule: FreshnessRule) -> int:
        """Returns how many labels changed. Raises InvalidRequestError if a stricter
        classification would allow older tiles than a less strict one."""
        async with self._store.transaction() as queries:
            policy = await queries.freshness.lock_policy_for_update()
            _check_order(policy, rule)
            await queries.freshness.set_rule(rule)
        return await self._relabel()

    async def explain(self, tile_uuid: str) -> Explanation:
        """Raises TileNotFoundError for an unknown id."""
        async with self._store.connection() as queries:
            tile = (await queries.tiles.find_tiles([tile_uuid])).get(tile_uuid)
            policy = await queries.freshness.read_policy()
        if tile is None:
            raise TileNotFoundError(f"there is no tile {tile_uuid}", tile_uuid=tile_uuid)
        now = self._clock.now()
        verdict = policy.evaluate(tile.latitude, tile.longitude, tile.captured_at, now)
        upcoming = verdict.expires_at is not None and now < verdict.expires_at
        return Explanation(
            tile=tile,
            verdict=verdict,
            sectors=policy.sectors_at(tile.latitude, tile.longitude),
            age=now - tile.captured_at,
            age_months=count_months(tile.captured_at, now),
            next_change_at=verdict.expires_at if upcoming else None,
            next_label=verdict.rule.expired_label if upcoming and verdict.rule else None,
            clock_trusted=self._clock.trusted,
        )

    async def _count_relabelled(self, queries: Queries) -> list[Relabelled]:
        """How many labels would change by the policy of a transaction."""
        now, last_id = self._clock.now(), 0
        counts: Counter[tuple[str, str]] = Counter()
        recently_used: Counter[tuple[str, str]] = Counter()
        while True:
            next_id, batch = await queries.freshness.count_relabelled(
                last_id,
                COUNT_BATCH_TILES,
                now,
                now - RECENTLY_USED,
                clock_trusted=self._clock.trusted,
            )
            for old, new, count, used in batch:
                counts[old, new] += count
                recently_used[old, new] += used
            if next_id is None:
                return [
                    Relabelled(*pair, counts[pair], recently_used[pair]) for pair in sorted(counts)
                ]
            last_id = next_id

    async def _relabel(self) -> int:
        """How many labels changed. The policy is committed by now: tiles that cannot be
        relabelled stay due, and are relabelled in the background."""
        self._freshness.due = True
        relabelled = 0
        try:
            async for progress in self._freshness.reevaluate():
                relabelled = progress.relabelled
        except TileCacheError as error:
            log.warning("relabelling_postponed", relabelled=relabelled, cause=str(error))
        return relabelled


def count_months(start: datetime, end: datetime) -> int:
    """Whole calendar months between two times; 0 if the end is before the start."""
    months = (end.year - start.year) * 12 + end.month - start.month
    if months > 0 and add_months(start, months) > end:
        months -= 1
    return max(months, 0)


def _check_order(policy: FreshnessPolicy, changed: FreshnessRule) -> None:
    rules = {rule.classification: rule for rule in policy.rules}
    rules[changed.classification] = changed
    ages = [
        (rules[classification].max_age_months, classification)
        for classification in SectorClassification
        if classification in rules
    ]
    for (strict_age, strict), (lenient_age, lenient) in pairwise(ages):
        if strict_age > lenient_age:
            raise InvalidRequestError(
                FieldViolation(
                    "rule.max_age_months",
                    f"is {changed.max_age_months}, but the max age of {strict.value} "
                    f"({strict_age} months) must be less than or equal to that of "
                    f"{lenient.value} ({lenient_age} months)",
                )
            )
