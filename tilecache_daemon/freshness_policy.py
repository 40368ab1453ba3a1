"""How fresh a tile is: sectors, rules and the verdict on a capture's age.

A tile lies in the sectors whose box contains its centre; the strictest
classification counts; outside all sectors nothing expires. Age is counted from
the capture in calendar months.
"""

import calendar
from dataclasses import dataclass
from datetime import MAXYEAR, datetime
from enum import Enum

from tilecache.mercator import BoundingBox
from tilecache_daemon.models import FreshnessLabel


class SectorClassification(str, Enum):
    """How fast the ground of a sector changes; the strictest first."""

    ACTIVE_CONFLICT = "active_conflict"
    STABLE_REAR = "stable_rear"


class FreshnessAction(str, Enum):
    """What happens to a tile past its rule's age."""

    REJECT = "reject"
    DOWNGRADE = "downgrade"


@dataclass(frozen=True, slots=True)
class Sector:
    """A classified area. Without a box it holds no tile."""

    name: str
    classification: SectorClassification
    bounding_box: BoundingBox | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class FreshnessRule:
    """From which age on, in calendar months, a classification acts."""

    classification: SectorClassification
    max_age_months: int
    action: FreshnessAction

    def expires_at(self, captured_at: datetime) -> datetime:
        """From when on a capture is past this rule's age."""
        return add_months(captured_at, self.max_age_months)

    @property
    def expired_label(self) -> FreshnessLabel:
        if self.action is FreshnessAction.REJECT:
            return FreshnessLabel.REJECTED
        return FreshnessLabel.DOWNGRADED


@dataclass(frozen=True, slots=True)
class Verdict:
    """A label, what gave it, and when it will change (never, if None)."""

    label: FreshnessLabel
    sector: Sector | None = None
    rule: FreshnessRule | None = None
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class FreshnessPolicy:
    """The sectors and rules in force."""

    sectors: tuple[Sector, ...] = ()
    rules: tuple[FreshnessRule, ...] = ()

    def sectors_at(self, latitude: float, longitude: float) -> list[Sector]:
        """The sectors that hold a point, the one that counts first."""
        order = list(SectorClassification)
        found = [
            sector
            for sector in self.sectors
            if sector.bounding_box and sector.bounding_box.contains(latitude, longitude)
        ]
        return sorted(found, key=lambda sector: (order.index(sector.classification), sector.name))

    def evaluate(
        self, latitude: float, longitude: float, captured_at: datetime, now: datetime
    ) -> Verdict:
        """The verdict on a tile whose centre and capture are given."""
        sectors = self.sectors_at(latitude, longitude)
        if not sectors:
            return Verdict(FreshnessLabel.FRESH)
        rule = self._rule_of(sectors[0].classification)
        if rule is None:
            return Verdict(FreshnessLabel.FRESH, sectors[0])
        expires_at = rule.expires_at(captured_at)
        label = rule.expired_label if now >= expires_at else FreshnessLabel.FRESH
        return Verdict(label, sectors[0], rule, expires_at)

    def _rule_of(self, classification: SectorClassification) -> FreshnessRule | None:
        return next((rule for rule in self.rules if rule.classification is classification), None)


def add_months(moment: datetime, months: int) -> datetime:
    """The same day so many calendar months later, or the month's last if it has
    no such day; as PostgreSQL adds an interval of months. The end of time where
    the calendar has no later year."""
    years, month = divmod(moment.month - 1 + months, 12)
    year = moment.year + years
    if year > MAXYEAR:
        return datetime(MAXYEAR, 12, 31, tzinfo=moment.tzinfo)
    day = min(moment.day, calendar.monthrange(year, month + 1)[1])
    return moment.replace(year=year, month=month + 1, day=day)
