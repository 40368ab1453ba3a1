"""The freshness policy: sectors, rules, and how they evaluate a tile's age.

A sector contains the tiles whose centre is in its box or polygon. Of several sectors, the one with
the strictest classification applies. Outside all sectors nothing expires. Age is counted
from the capture, in calendar months.
"""

import calendar
from dataclasses import dataclass
from datetime import MAXYEAR, datetime
from enum import Enum
from typing import NamedTuple

from tilecache.mercator import BoundingBox
from tilecache_daemon.geometry.polygon import Polygon
from tilecache_daemon.models import FreshnessLabel


class SectorClassification(str, Enum):
    """How fast the ground of a sector changes, strictest first."""

    ACTIVE_CONFLICT = "active_conflict"
    STABLE_REAR = "stable_rear"


class FreshnessAction(str, Enum):
    """What a rule does to tiles past its maximum age."""

    REJECT = "reject"
    DOWNGRADE = "downgrade"


class SectorArea(NamedTuple):
    """A box, or a polygon with the box around it."""

    box: BoundingBox
    polygon: Polygon | None = None


@dataclass(frozen=True, slots=True)
class Sector:
    """A classified area: a box, or a polygon within it. Without a box it contains no tile."""

    name: str
    classification: SectorClassification
    bounding_box: BoundingBox | None
    created_at: datetime
    polygon: Polygon | None = None

    def contains(self, latitude: float, longitude: float) -> bool:
        """Whether a point is within, edges included."""
        box = self.bounding_box
        if box is None or not box.contains(latitude, longitude):
            return False
        # The polygon begins in the west of its box and may go on beyond the antimeridian.
        turned = longitude + 360.0 if longitude < box.west else longitude
        return self.polygon is None or self.polygon.contains(latitude, turned)


@dataclass(frozen=True, slots=True)
class FreshnessRule:
    """The maximum age of tiles in sectors of a classification, in calendar months."""

    classification: SectorClassification
    max_age_months: int
    action: FreshnessAction

    def expires_at(self, captured_at: datetime) -> datetime:
        """The time from which a capture is past the maximum age."""
        return add_months(captured_at, self.max_age_months)

    @property
    def expired_label(self) -> FreshnessLabel:
        if self.action is FreshnessAction.REJECT:
            return FreshnessLabel.REJECTED
        return FreshnessLabel.DOWNGRADED


@dataclass(frozen=True, slots=True)
class Verdict:
    """A label, the sector and rule that apply, and when the label expires (None: never)."""

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
        """The sectors that contain a point, the one that applies first."""
        order = list(SectorClassification)
        found = [sector for sector in self.sectors if sector.contains(latitude, longitude)]
        return sorted(found, key=lambda sector: (order.index(sector.classification), sector.name))

    def evaluate(
        self, latitude: float, longitude: float, captured_at: datetime, now: datetime
    ) -> Verdict:
        """The verdict on a tile with this centre and capture time."""
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
    """Adds calendar months as PostgreSQL does: the same day of the later month, or its last
    day if it has no such day. Beyond the calendar, 31 December 9999."""
    years, month = divmod(moment.month - 1 + months, 12)
    year = moment.year + years
    if year > MAXYEAR:
        return datetime(MAXYEAR, 12, 31, tzinfo=moment.tzinfo)
    day = min(moment.day, calendar.monthrange(year, month + 1)[1])
    return moment.replace(year=year, month=month + 1, day=day)
