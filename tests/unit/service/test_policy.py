"""Ages in whole calendar months."""

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilecache_daemon.freshness_policy import add_months
from tilecache_daemon.service.policy import count_months

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
MOMENTS = st.timedeltas(timedelta(0), timedelta(days=45_000)).map(lambda since: EPOCH + since)
MICROSECOND = timedelta(microseconds=1)


def day(year: int, month: int, number: int) -> datetime:
    return datetime(year, month, number, 12, tzinfo=timezone.utc)


@given(MOMENTS, MOMENTS)
def test_the_count_is_the_number_of_months_that_have_passed(start: datetime, end: datetime) -> None:
    months = count_months(start, end)

    assert months >= 0
    assert end < start or add_months(start, months) <= end
    assert end < add_months(start, months + 1)


@given(MOMENTS, st.integers(1, 1_200))
def test_the_count_reaches_a_rules_age_when_a_capture_expires(
    captured_at: datetime, months: int
) -> None:
    expires_at = add_months(captured_at, months)

    assert count_months(captured_at, expires_at) >= months
    assert count_months(captured_at, expires_at - MICROSECOND) < months


@pytest.mark.parametrize(
    ("start", "end", "months"),
    [
        (day(2026, 8, 31), day(2027, 2, 27), 5),
        (day(2026, 8, 31), day(2027, 2, 28), 6),
        (day(2027, 8, 31), day(2028, 2, 28), 5),
        (day(2027, 8, 31), day(2028, 2, 29), 6),
        (day(2028, 2, 29), day(2029, 2, 28), 12),
        (day(2026, 3, 1), day(2026, 2, 1), 0),
    ],
)
def test_months_are_calendar_months(start: datetime, end: datetime, months: int) -> None:
    assert count_months(start, end) == months
