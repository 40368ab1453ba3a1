"""The clock, on a system and a monotonic clock that the test sets."""

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilecache_daemon.clock import (
    CLOCK_TOLERANCE,
    LATEST_PLAUSIBLE,
    MAX_AHEAD,
    RELEASED_AT,
    Clock,
)

NOON = datetime(2027, 6, 1, 12, 0, tzinfo=timezone.utc)
SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)


class Machine:
    """The clocks of a machine."""

    def __init__(self, wall: datetime = NOON) -> None:
        self.wall = wall
        self.uptime_s = 100.0
        self.clock = Clock(wall=lambda: self.wall, monotonic=lambda: self.uptime_s)

    def pass_time(self, duration: timedelta) -> None:
        self.wall += duration
        self.uptime_s += duration.total_seconds()


def test_a_clock_without_observations_is_trusted() -> None:
    clock = Machine().clock
    assert clock.trusted
    assert clock.reason == ""
    assert clock.now() == NOON


def test_a_clock_ahead_of_the_observations_is_trusted() -> None:
    clock = Machine().clock
    clock.observe(NOON - HOUR)
    assert clock.trusted
    assert clock.now() == NOON


def test_a_clock_behind_an_observation_is_not_trusted_and_gives_the_reason() -> None:
    clock = Machine().clock
    clock.observe(NOON + HOUR)
    assert not clock.trusted
    assert clock.reason == (
        "the system clock is at 2027-06-01 12:00:00Z, but it is at least 2027-06-01 13:00:00Z"
    )


def test_while_it_is_behind_the_earliest_possible_time_is_used_and_advances() -> None:
    machine = Machine()
    machine.clock.observe(NOON + HOUR)
    assert machine.clock.now() == NOON + HOUR
    machine.pass_time(30 * SECOND)
    assert machine.clock.now() == NOON + HOUR + 30 * SECOND


def test_a_machine_that_boots_in_1970_is_not_trusted() -> None:
    machine = Machine(datetime(1970, 1, 1, tzinfo=timezone.utc))
    assert not machine.clock.trusted
    assert machine.clock.now() == RELEASED_AT
    assert "1970-01-01" in machine.clock.reason


def test_it_is_trusted_once_the_time_is_set() -> None:
    machine = Machine(datetime(1970, 1, 1, tzinfo=timezone.utc))
    machine.clock.observe(NOON - HOUR)
    assert not machine.clock.trusted
    machine.wall = NOON
    assert machine.clock.trusted
    assert machine.clock.now() == NOON


def test_a_jump_back_is_not_followed() -> None:
    machine = Machine()
    assert machine.clock.now() == NOON
    machine.wall -= HOUR
    machine.uptime_s += 1.0
    assert machine.clock.now() == NOON + SECOND
    assert not machine.clock.trusted


def test_it_is_trusted_after_a_small_correction() -> None:
    machine = Machine()
    machine.clock.now()
    machine.wall -= CLOCK_TOLERANCE
    assert machine.clock.trusted
    assert machine.clock.now() == NOON
    machine.wall -= timedelta(milliseconds=1)
    assert not machine.clock.trusted


def test_an_observation_of_the_past_changes_nothing() -> None:
    machine = Machine()
    machine.clock.observe(NOON + HOUR)
    machine.clock.observe(NOON)
    assert machine.clock.now() == NOON + HOUR


@given(
    st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(0, 1e4), st.floats(-1e6, 1e6)), max_size=50)
)
def test_the_time_never_goes_backward(steps: list[tuple[float, float, float]]) -> None:
    machine = Machine()
    last = machine.clock.now()
    for wall_jump_s, passed_s, seen_s in steps:
        machine.wall += timedelta(seconds=wall_jump_s)
        machine.uptime_s += passed_s
        machine.clock.observe(NOON + timedelta(seconds=seen_s))
        now = machine.clock.now()
        assert now >= last
        last = now


def test_the_system_clock_is_used_by_default() -> None:
    before = datetime.now(timezone.utc)
    assert Clock().now() >= min(before, RELEASED_AT)


@pytest.mark.parametrize("days_behind", [1, 400])
def test_it_is_not_trusted_until_it_has_caught_up(days_behind: int) -> None:
    machine = Machine()
    machine.clock.observe(NOON + timedelta(days=days_behind))
    machine.pass_time(HOUR)
    assert not machine.clock.trusted


def test_a_time_far_ahead_of_a_plausible_clock_is_not_believed() -> None:
    clock = Machine().clock
    clock.observe(NOON + MAX_AHEAD + SECOND)
    assert clock.trusted
    assert clock.now() == NOON
    clock.observe(NOON + MAX_AHEAD)
    assert not clock.trusted
    assert clock.now() == NOON + MAX_AHEAD


def test_a_machine_that_boots_in_1970_believes_any_plausible_time() -> None:
    machine = Machine(datetime(1970, 1, 1, tzinfo=timezone.utc))
    machine.clock.observe(LATEST_PLAUSIBLE + SECOND)
    assert machine.clock.now() == RELEASED_AT
    machine.clock.observe(LATEST_PLAUSIBLE - HOUR)
    assert machine.clock.now() == LATEST_PLAUSIBLE - HOUR
    machine.pass_time(2 * HOUR)
    assert machine.clock.now() == LATEST_PLAUSIBLE
    assert not machine.clock.trusted


def test_a_clock_that_is_ahead_of_what_is_plausible_is_not_used() -> None:
    machine = Machine()
    machine.clock.now()
    machine.wall = datetime(2099, 1, 1, tzinfo=timezone.utc)
    machine.uptime_s += 1.0
    assert machine.clock.now() == NOON + SECOND
    assert not machine.clock.trusted
    assert "2099-01-01" in machine.clock.reason
    assert f"after {LATEST_PLAUSIBLE:%Y-%m-%d}" in machine.clock.reason


def test_a_clock_that_was_far_ahead_is_right_again_after_its_correction() -> None:
    machine = Machine()
    machine.wall += 2 * MAX_AHEAD
    assert machine.clock.now() == NOON + 2 * MAX_AHEAD
    machine.wall = NOON + HOUR
    assert machine.clock.trusted
    assert machine.clock.now() == NOON + HOUR
    assert machine.clock.corrections == 1
