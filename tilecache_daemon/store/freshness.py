"""Reading and changing sectors and rules, and re-evaluating labels."""

import json
from datetime import datetime
from functools import lru_cache
from itertools import zip_longest
from typing import Any, Final, NamedTuple

from tilecache.mercator import BoundingBox
from tilecache_daemon.freshness_policy import (
    FreshnessAction,
    FreshnessPolicy,
    FreshnessRule,
    Sector,
    SectorArea,
    SectorClassification,
)
from tilecache_daemon.geometry.polygon import Polygon
from tilecache_daemon.store.statements import Statements

_EDGES: Final = ("edge_souths", "edge_wests", "edge_norths", "edge_easts")
_POLICY_LOCK: Final = 0x7469_6C65_0001  # the key of an advisory lock, unique to this use


class RelabelProgress(NamedTuple):
    """The result of one batch of a re-evaluation. `last_id` is None after the last batch."""

    last_id: int | None
    evaluated: int
    relabelled: int


class Relabelled(NamedTuple):
    """How many tiles change from a label to another one, and how many of these are in use."""

    old_label: str
    new_label: str
    tile_count: int
    recently_used_count: int


class ExpiryWindow(NamedTuple):
    """After `now` and not after `until`, for tiles captured in a range that contains all that may
    expire then."""

    now: datetime
    until: datetime
    captured_from: datetime
    captured_to: datetime


class ExpiringTile(NamedTuple):
    """A tile whose label becomes worse. Times are microseconds since 2000."""

    tile_uuid: str
    zoom: int
    x: int
    y: int
    source: str
    flight_id: str | None
    captured_us: int
    disk_bytes: int
    label: str
    expires_us: int
    next_label: str
    sector: str
    id: int


class FreshnessQueries(Statements):
    """The sectors and rules in force, and the labels of stored tiles."""

    async def lock_policy_for_share(self) -> FreshnessPolicy:
        """Reads the policy, and blocks changes to it until the transaction ends."""
        await self._execute("lock_policy_for_share", {"key": _POLICY_LOCK})
        return await self.read_policy()

    async def lock_policy_for_update(self) -> FreshnessPolicy:
        """Reads the policy, and blocks inserts and other changes to it until the transaction
        ends."""
        await self._execute("lock_policy_for_update", {"key": _POLICY_LOCK})
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
        """Updates the labels of the next `limit` tiles, in the order of row ids."""
        parameters = {
            "after_id": after_id,
            "limit": limit,
            "now": now,
            "clock_trusted": clock_trusted,
        }
        return RelabelProgress(*(await self._rows("relabel_tiles", parameters))[0])

    async def list_expiring(
        self, window: ExpiryWindow, after: tuple[int, int], limit: int
    ) -> list[ExpiringTile]:
        """Tiles whose label becomes worse within a window, oldest capture first, after the
        position (captured_us, id)."""
        parameters = window._asdict() | {
            "after_us": after[0],
            "after_id": after[1],
            "limit": limit,
        }
        rows = await self._binary_rows("list_expiring", parameters)
        return [ExpiringTile(*row) for row in rows]

    async def count_relabelled(
        self, after_id: int, limit: int, now: datetime, used_since: datetime, *, clock_trusted: bool
    ) -> tuple[int | None, list[Relabelled]]:
        """How many of the next `limit` tiles, in the order of row ids, would get another label;
        and the last id, None after the last batch."""
        parameters = {
            "after_id": after_id,
            "limit": limit,
            "now": now,
            "used_since": used_since,
            "clock_trusted": clock_trusted,
        }
        rows = await self._rows("count_relabelled", parameters)
        return rows[-1][0], [Relabelled(*row[1:]) for row in rows if row[1] is not None]

    async def set_sector(
        self, name: str, classification: SectorClassification, area: SectorArea, now: datetime
    ) -> Sector:
        """Adds a sector, or changes the one with this name."""
        edges = [list(map(float, edge)) for edge in area.polygon.edges] if area.polygon else []
        parameters = {
            "name": name,
            "classification": classification.value,
            "now": now,
            "polygon": json.dumps(area.polygon.rings) if area.polygon else None,
            **dict(zip_longest(_EDGES, edges)),
        }
        return _sector((await self._rows("set_sector", parameters | area.box._asdict()))[0])

    async def delete_sector(self, name: str) -> bool:
        """Returns whether the sector existed."""
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
    name, classification, *box, created_at, rings = row
    bounding_box = None if None in box else BoundingBox(*box)
    polygon = _polygon(rings) if rings else None
    return Sector(name, SectorClassification(classification), bounding_box, created_at, polygon)


@lru_cache(maxsize=1_024)
def _polygon(rings: str) -> Polygon:
    """Cached, because every insert reads the sectors."""
    outer, *holes = json.loads(rings)
    return Polygon(outer, holes, check=False)
