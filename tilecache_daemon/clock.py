"""The clock. It is injected everywhere, so that a flight can be replayed."""

import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Final

RELEASED_AT: Final = datetime(2026, 11, 1, tzinfo=timezone.utc)
"""This version cannot be running earlier than this."""
LATEST_PLAUSIBLE: Final = RELEASED_AT.replace(year=RELEASED_AT.year + 10)
"""Nor is it believed to be running later than this. Faulty clocks show 2038, 2080 or 2106."""
MAX_AHEAD: Final = timedelta(days=730)
"""How far a time seen may be ahead of a plausible system clock and still be believed. A system
clock that lost its time is behind the release; one that is not has kept the time well enough."""


def system_time() -> datetime:
    """The machine's time of day, in UTC."""
    return datetime.now(timezone.utc)


class Clock:
    """The time of day, not trusted while it is behind a time that was already seen.

    While the system clock is behind the latest time seen, `now` returns that time,
    advanced by a monotonic clock: the earliest possible time. It goes backward only when
    the times seen turn out to be implausible (`latest_plausible`).
    """

    def __init__(
        self,
        wall: Callable[[], datetime] = system_time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall = wall
        self.monotonic = monotonic
        self.corrections = 0
        """How often `now` went backward."""
        self._floor = RELEASED_AT
        self._floor_set_at = monotonic()

    def now(self) -> datetime:
        """The time to use, in UTC."""
        wall, floor = self._read()
        if floor <= wall <= LATEST_PLAUSIBLE:
            self._floor, self._floor_set_at = wall, self.monotonic()
            return wall
        return floor

    @property
    def trusted(self) -> bool:
        """Whether the system clock is plausible and not behind the latest time seen."""
        return not self.reason

    @property
    def reason(self) -> str:
        """Why the clock is not trusted; empty if it is."""
        wall, floor = self._read()
        at = f"the system clock is at {wall:%Y-%m-%d %H:%M:%S}Z"
        if wall > LATEST_PLAUSIBLE:
            return f"{at}, but this version is not in use after {LATEST_PLAUSIBLE:%Y-%m-%d}"
        if wall < floor - CLOCK_TOLERANCE:
            return f"{at}, but it is at least {floor:%Y-%m-%d %H:%M:%S}Z"
        return ""

    @property
    def latest_plausible(self) -> datetime:
        """Later times are errors of a clock, whoever has recorded them."""
        wall = self._wall()
        if RELEASED_AT <= wall <= LATEST_PLAUSIBLE - MAX_AHEAD:
            return wall + MAX_AHEAD
        return LATEST_PLAUSIBLE

    def observe(self, seen: datetime) -> None:
        """Records that `seen` is in the past, whatever the system clock says, if it is
        plausible."""
        if self._read()[1] < seen <= self.latest_plausible:
            self._floor, self._floor_set_at = seen, self.monotonic()

    def _read(self) -> tuple[datetime, datetime]:
        """The system clock and the earliest possible time."""
        wall = self._wall()
        floor = self._floor + timedelta(seconds=self.monotonic() - self._floor_set_at)
        if floor > self.latest_plausible:
            # Seen by a clock that was ahead, and is right again.
            self.corrections += 1
            plausible = RELEASED_AT <= wall <= LATEST_PLAUSIBLE
            self._floor = wall if plausible else LATEST_PLAUSIBLE
            self._floor_set_at = self.monotonic()
            floor = self._floor
        return wall, floor


CLOCK_TOLERANCE: Final = timedelta(seconds=2)
"""How far the system clock may be behind and still be trusted. NTP makes small
corrections."""
