"""Sectors, rules and labels."""

from datetime import datetime
from typing import Any, Final, NamedTuple

from tilecache.mercator import BoundingBox
from tilecache_daemon.freshness_policy import (
    FreshnessAction,
    FreshnessPolicy,
    FreshnessRule,
    Sector,
    SectorClassification,
)
from tilecache_daemon.store.statements import Statements

_POLICY_LOCK: Final = 0x7469_6C65_0001  # any number that nothing else locks


class RelabelProgress(NamedTuple):
    """How far a batch of re-evaluation came. `last_id` is None at the end."""

    last_id: int | None
    evaluated: int
    relabelled: int


class FreshnessQueries(Statements):
    """The policy, and what it says of the tiles."""

    async def hold_policy(self) -> FreshnessPolicy:
        """The sectors and rules, which stay as they are until the transaction ends."""
        await self._execute("hold_policy", {"key": _POLICY_LOCK})
        return await self.read_policy()

    async def read_policy(self) -> FreshnessPolicy:
        """The sectors and rules in force."""
        sectors = [_sector(row) for row in await self._rows("list_sectors")]
        rules = [
            FreshnessRule(SectorClassification(row[0]), row[1], FreshnessAction(row[2]))
            for row in await self._rows("list_rules")
        ]
        return FreshnessPolicy(tuple(sectors), tuple(rules))

    async def relabel_tiles(
        self, after_id: int, limit: int, now: datetime, *, clock_trusted: bool
    ) -> RelabelProgress:
        """Brings the labels of the next tiles, by row id, up to date."""
        parameters = {
            "after_id": after_id,
            "limit": limit,
            "now": now,
            "clock_trusted": clock_trusted,
        }
        return RelabelProgress(*(await self._rows("relabel_tiles", parameters))[0])

    async def change_policy(self) -> FreshnessPolicy:
        """The sectors and rules, which only this transaction may change until it ends."""
        await self._execute("change_policy", {"key": _POLICY_LOCK})
        return await self.read_policy()

    async def set_sector(
        self, name: str, classification: SectorClassification, box: BoundingBox, now: datetime
    ) -> Sector:
        """Makes a sector, or changes the one of that name."""
        parameters = {"name": name, "classification": classification.value, "now": now}
        return _sector((await self._rows("set_sector", parameters | box._asdict()))[0])

    async def delete_sector(self, name: str) -> bool:
        """Whether there was one."""
        return bool(await self._rows("delete_sector", {"name": name}))

    async def set_rule(self, rule: FreshnessRule) -> None:
        """Sets the rule of a classification."""
        await self._execute(
            "set_rule",
            {
                "classification": rule.classification.value,
                "max_age_months": rule.max_age_months,
                "action": rule.action.value,
            },
        )


def _sector(row: tuple[Any, ...]) -> Sector:
    name, classification, *box, created_at = row
    bounding_box = None if None in box else BoundingBox(*box)
    return Sector(name, SectorClassification(classification), bounding_box, created_at)
