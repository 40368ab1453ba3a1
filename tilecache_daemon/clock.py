"""The clock. It is injected everywhere, so that a flight can be replayed."""

import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Final

RELEASED_AT: Final = datetime(2026, 11, 1, tzinfo=timezone.utc)
"""This version cannot be running earlier than this."""


def system_time() -> datetime:
    """The machine's time of day, in UTC."""
    return datetime.now(timezone.utc)


class Clock:
    """The time of day, not trusted while it is behind a time that was already seen.

    While the system clock is behind the latest time seen, `now` returns that time,
    advanced by a monotonic clock: the earliest possible time. It never goes backward.
    """

    def __init__(
        self,
        wall: Callable[[], datetime] = system_time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall = wall
        self.monotonic = monotonic
        self._floor = RELEASED_AT
        self._floor_set_at = monotonic()

    def now(self) -> datetime:
        """The time to use, in UTC; never earlier than a time seen before."""
        wall, floor = self._wall(), self._earliest()
        if wall >= floor:
            self._floor, self._floor_set_at = wall, self.monotonic()
            return wall
        return floor

    @property
    def trusted(self) -> bool:
        """Whether the system clock is not behind the latest time seen."""
        return self._wall() >= self._earliest() - CLOCK_TOLERANCE

    @property
    def reason(self) -> str:
        """Why the clock is not trusted; empty if it is."""
        wall, floor = self._wall(), self._earliest()
        if wall >= floor - CLOCK_TOLERANCE:
            return ""
        return (
            f"the system clock is at {wall:%Y-%m-%d %H:%M:%S}Z, "
            f"but it is at least {floor:%Y-%m-%d %H:%M:%S}Z"
        )

    def observe(self, seen: datetime) -> None:
        """Records that `seen` is in the past, whatever the system clock says."""
        if seen > self._earliest():
            self._floor, self._floor_set_at = seen, self.monotonic()

    def _earliest(self) -> datetime:
        return self._floor + timedelta(seconds=self.monotonic() - self._floor_set_at)


CLOCK_TOLERANCE: Final = timedelta(seconds=2)
"""How far the system clock may be behind and still be trusted. NTP makes small
corrections."""
