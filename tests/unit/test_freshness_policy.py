"""When captures expire, and which sector applies."""

from datetime import datetime, timedelta, timezone

import pytest

from tilecache.mercator import BoundingBox
from tilecache_daemon.freshness_policy import (
    FreshnessAction,
    FreshnessPolicy,
    FreshnessRule,
    Sector,
    SectorClassification,
    add_months,
)
from tilecache_daemon.models import FreshnessLabel

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=timezone.utc)
REJECT_AT_6 = FreshnessRule(SectorClassification.ACTIVE_CONFLICT, 6, FreshnessAction.REJECT)
DOWNGRADE_AT_12 = FreshnessRule(SectorClassification.STABLE_REAR, 12, FreshnessAction.DOWNGRADE)
RULES = (REJECT_AT_6, DOWNGRADE_AT_12)
BOX = BoundingBox(48.0, 30.0, 50.0, 40.0)
MICROSECOND = timedelta(microseconds=1)


def day(year: int, month: int, number: int) -> datetime:
    return datetime(year, month, number, 7, 30, 15, 123456, tzinfo=timezone.utc)


def sector(
    classification: SectorClassification, box: BoundingBox | None = BOX, name: str = "s"
) -> Sector:
    return Sector(name, classification, box, NOW)


def front(box: BoundingBox | None = BOX) -> Sector:
    return sector(SectorClassification.ACTIVE_CONFLICT, box, "front")


def rear(box: BoundingBox | None = BOX) -> Sector:
    return sector(SectorClassification.STABLE_REAR, box, "rear")


@pytest.mark.parametrize(
    ("captured", "months", "expected"),
    [
        (day(2026, 1, 15), 6, day(2026, 7, 15)),
        (day(2026, 8, 31), 6, day(2027, 2, 28)),
        (day(2027, 8, 31), 6, day(2028, 2, 29)),
        (day(2024, 2, 29), 12, day(2025, 2, 28)),
        (day(2024, 2, 29), 48, day(2028, 2, 29)),
        (day(2026, 3, 31), 1, day(2026, 4, 30)),
        (day(2026, 12, 31), 2, day(2027, 2, 28)),
        (day(2026, 12, 1), 1, day(2027, 1, 1)),
        (day(2026, 11, 23), 0, day(2026, 11, 23)),
        (day(1900, 2, 28), 1200, day(2000, 2, 28)),
    ],
)
def test_months_are_calendar_months(captured: datetime, months: int, expected: datetime) -> None:
    assert add_months(captured, months) == expected


def test_beyond_the_calendar_the_result_is_its_last_day() -> None:
    assert add_months(day(9999, 12, 1), 1).year == 9999
    assert add_months(day(2026, 1, 1), 1_000_000) > day(9999, 12, 1)


@pytest.mark.parametrize(
    ("applied", "months", "expired"),
    [(front(), 6, FreshnessLabel.REJECTED), (rear(), 12, FreshnessLabel.DOWNGRADED)],
)
def test_a_label_changes_when_the_maximum_age_is_reached(
    applied: Sector, months: int, expired: FreshnessLabel
) -> None:
    policy = FreshnessPolicy((applied,), RULES)
    captured_at = day(2025, 8, 31)
    expires_at = add_months(captured_at, months)
    before = policy.evaluate(49.0, 35.0, captured_at, expires_at - MICROSECOND)
    after = policy.evaluate(49.0, 35.0, captured_at, expires_at)
    assert (before.label, after.label) == (FreshnessLabel.FRESH, expired)
    assert before.expires_at == after.expires_at == expires_at
    assert before.sector == after.sector == applied


def test_outside_all_sectors_nothing_expires() -> None:
    verdict = FreshnessPolicy((front(),), RULES).evaluate(0.0, 0.0, day(1950, 1, 1), NOW)
    assert verdict.label is FreshnessLabel.FRESH
    assert verdict.sector is verdict.rule is verdict.expires_at is None


@pytest.mark.parametrize("sectors", [(front(), rear()), (rear(), front())])
def test_the_strictest_classification_applies(sectors: tuple[Sector, ...]) -> None:
    verdict = FreshnessPolicy(sectors, RULES).evaluate(49.0, 35.0, day(2020, 1, 1), NOW)
    assert verdict.label is FreshnessLabel.REJECTED
    assert verdict.sector == front()
    assert verdict.rule == REJECT_AT_6


def test_the_strictest_applies_even_if_its_rule_allows_older_tiles() -> None:
    generous = FreshnessRule(SectorClassification.ACTIVE_CONFLICT, 60, FreshnessAction.REJECT)
    policy = FreshnessPolicy((front(), rear()), (generous, DOWNGRADE_AT_12))
    assert policy.evaluate(49.0, 35.0, day(2025, 1, 1), NOW).label is FreshnessLabel.FRESH


def test_without_a_rule_for_its_classification_nothing_expires() -> None:
    verdict = FreshnessPolicy((front(),), (DOWNGRADE_AT_12,)).evaluate(
        49.0, 35.0, day(1950, 1, 1), NOW
    )
    assert verdict.label is FreshnessLabel.FRESH
    assert verdict.sector == front()


def test_a_sector_without_a_box_contains_nothing() -> None:
    verdict = FreshnessPolicy((front(None),), RULES).evaluate(49.0, 35.0, day(1950, 1, 1), NOW)
    assert verdict.sector is None


@pytest.mark.parametrize(
    ("latitude", "longitude", "within"),
    [
        (48.0, 30.0, True),
        (50.0, 40.0, True),
        (47.999, 35.0, False),
        (50.001, 35.0, False),
        (49.0, 29.999, False),
        (49.0, 40.001, False),
    ],
)
def test_a_sector_includes_its_edges(latitude: float, longitude: float, within: bool) -> None:
    policy = FreshnessPolicy((front(),), RULES)
    assert bool(policy.sectors_at(latitude, longitude)) is within


@pytest.mark.parametrize(
    ("longitude", "within"), [(175.0, True), (-175.0, True), (180.0, True), (0.0, False)]
)
def test_a_sector_may_cross_the_antimeridian(longitude: float, within: bool) -> None:
    policy = FreshnessPolicy((front(BoundingBox(0.0, 170.0, 10.0, -170.0)),), RULES)
    assert bool(policy.sectors_at(5.0, longitude)) is within
