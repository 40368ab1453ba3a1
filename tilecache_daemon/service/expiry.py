"""Which tiles expire within a time, and how many by day and sector."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Final, NamedTuple

from tilecache_daemon.clock import Clock
from tilecache_daemon.freshness_policy import FreshnessPolicy, add_months
from tilecache_daemon.models import moment_of
from tilecache_daemon.store.freshness import ExpiringTile, ExpiryWindow
from tilecache_daemon.store.store import Store

BATCH_TILES: Final = 2_000

_FIRST: Final = (-(2**63), 0)
_MARGIN: Final = timedelta(days=4)
"""Of capture times, since months differ in length."""
_EARLIEST: Final = datetime(1, 1, 1, tzinfo=timezone.utc)
_LATEST: Final = datetime(9999, 12, 31, tzinfo=timezone.utc)

ContainsCell = Callable[[int, int, int], bool]
"""Whether a cell (zoom, x, y) is of interest."""


class ExpiryDay(NamedTuple):
    """The tiles that get a label on a day, in UTC, for a sector's rule."""

    day: datetime
    sector: str
    next_label: str


@dataclass(slots=True)
class ExpirySummary:
    """How many tiles expire, and their size in bytes; updated as they are found."""

    now: datetime
    clock_trusted: bool
    counts: dict[ExpiryDay, tuple[int, int]] = field(default_factory=dict)

    def add(self, tile: ExpiringTile) -> None:
        expires_at = moment_of(tile.expires_us)
        midnight = expires_at.replace(hour=0, minute=0, second=0, microsecond=0)
        day = ExpiryDay(midnight, tile.sector, tile.next_label)
        count, size = self.counts.get(day, (0, 0))
        self.counts[day] = (count + 1, size + tile.disk_bytes)


class ExpiryService:
    """Lists expiring tiles."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    def start(self) -> ExpirySummary:
        """A summary to be filled, from now on."""
        return ExpirySummary(self._clock.now(), self._clock.trusted)

    async def list(
        self, summary: ExpirySummary, within: timedelta, contains: ContainsCell
    ) -> AsyncIterator[list[ExpiringTile]]:
        """The tiles whose label becomes worse, some at a time, oldest capture first. The cost
        depends on how many there are, not on how many are stored."""
        async with self._store.connection() as queries:
            policy = await queries.freshness.read_policy()
        until = min(summary.now, _LATEST - within) + within
        window = _window(policy, summary.now, until)
        position = _FIRST
        while window:
            async with self._store.connection() as queries:
                found = await queries.freshness.list_expiring(window, position, BATCH_TILES)
            if not found:
                return
            position = (found[-1].captured_us, found[-1].id)
            chosen = [tile for tile in found if contains(tile.zoom, tile.x, tile.y)]
            for tile in chosen:
                summary.add(tile)
            yield chosen


def _window(policy: FreshnessPolicy, now: datetime, until: datetime) -> ExpiryWindow | None:
    """None where nothing expires."""
    ages = [rule.max_age_months for rule in policy.rules]
    if not ages or not policy.sectors:
        return None
    return ExpiryWindow(
        now,
        until,
        _before(now, max(ages)) - _MARGIN,
        min(_before(until, min(ages)), _LATEST - _MARGIN) + _MARGIN,
    )


def _before(moment: datetime, months: int) -> datetime:
    """About so many months before a time: the day may differ by three."""
    if months >= 12 * (moment.year - 2):
        return _EARLIEST + _MARGIN
    return add_months(moment, -months)
