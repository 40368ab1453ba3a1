"""The time, injected wherever it is needed so that a flight can be replayed."""

import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Final

RELEASED_AT: Final = datetime(2026, 11, 1, tzinfo=timezone.utc)
"""No earlier than this can this version be running."""


def system_time() -> datetime:
    """The machine's time of day, in UTC."""
    return datetime.now(timezone.utc)


class Clock:
    """The time of day, doubted while it is behind what has already been seen.

    While the machine's time is behind the latest time known to be past, that
    one, counted on by a monotonic clock, is given instead: the earliest that it
    can be. It never runs backward.
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
        """The time to work with, in UTC; not less than any time seen before."""
        wall, floor = self._wall(), self._earliest()
        if wall >= floor:
            self._floor, self._floor_set_at = wall, self.monotonic()
            return wall
        return floor

    @property
    def trusted(self) -> bool:
        """Whether the machine's time is not behind what has been seen."""
        return self._wall() >= self._earliest() - CLOCK_TOLERANCE

    @property
    def reason(self) -> str:
        """Why the clock is not trusted; empty if it is."""
        wall, floor = self._wall(), self._earliest()
        if wall >= floor - CLOCK_TOLERANCE:
            return ""
        return f"the clock says {wall:%Y-%m-%d %H:%M:%S}Z, but {floor:%Y-%m-%d %H:%M:%S}Z is past"

    def observe(self, seen: datetime) -> None:
        """Takes note that `seen` is past, whatever the machine's time says."""
        if seen > self._earliest():
            self._floor, self._floor_set_at = seen, self.monotonic()

    def _earliest(self) -> datetime:
        return self._floor + timedelta(seconds=self.monotonic() - self._floor_set_at)


CLOCK_TOLERANCE: Final = timedelta(seconds=2)
"""How far the clock may be behind before it is doubted: small corrections by
NTP are no reason to."""
