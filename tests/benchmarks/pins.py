"""Figures of pins: what they cost an eviction beside them, and an insert that passes them."""

import psycopg

from tests.admin import set_pin
from tests.benchmarks.costs import TIMEOUT_S, full_daemon, insert_seconds
from tests.benchmarks.measure import Ratio, percentile, quotients, timed
from tests.benchmarks.stage import Stage
from tests.benchmarks.tiles import ZOOM, X, Y
from tests.tiles import cell_region, corridor_region
from tilecache.client import TileCacheClient
from tilecache.mercator import cell_centre
from tilecache.v1.tile_cache_admin_pb2 import EvictTilesRequest

TILES = 600_000
EDGE = 775
PINNED = 100_000
STORED_EDGE = 1_000
EVICTED = 100_000
HALF_WIDTH_METERS = 2_000.0
ROUNDS = 3


def measure_pins(stage: Stage) -> list[Ratio]:
    """All of them."""
    return [_eviction_beside_a_pin(stage), _insert_with_pinned(stage)]


def _eviction_beside_a_pin(stage: Stage) -> Ratio:
    """The corridor crosses the tiles that are evicted."""
    taken: dict[str, list[float]] = {"with a pin": [], "without": []}
    for _ in range(ROUNDS):
        for name, times in taken.items():
            database = stage.database(STORED_EDGE)
            with psycopg.connect(database) as connection:
                ((size,),) = connection.execute(
                    "SELECT (avg(disk_bytes) * %s)::bigint FROM tiles", [EVICTED]
                ).fetchall()
            with stage.daemon(database) as daemon:
                if name == "with a pin":
                    route = [
                        cell_centre(ZOOM, X, Y),
                        cell_centre(ZOOM, X + STORED_EDGE, Y + STORED_EDGE),
                    ]
                    region = corridor_region(route, HALF_WIDTH_METERS)
                    assert set_pin(daemon.admin_client, "route", region, [ZOOM]).pin.held.tile_count
                spent, goal_met = timed(_evict, daemon.admin_client, size)
                assert goal_met
                times.append(spent)
    return Ratio(
        "eviction_beside_pin_over_none",
        "evicting 100,000 of 1,000,000 tiles beside a pinned corridor, over without a pin",
        *(1.3, False, quotients(*taken.values())),
        parts=taken,
    )


def _insert_with_pinned(stage: Stage) -> Ratio:
    plain, pinned = stage.database(EDGE, TILES), stage.database(EDGE, TILES)
    with psycopg.connect(pinned) as connection:
        ((x_from, x_to, y_from, y_to),) = connection.execute(
            "SELECT min(x), max(x), min(y), max(y) FROM"
            " (SELECT x, y FROM tiles ORDER BY access_order, id LIMIT %s) AS first",
            [PINNED],
        ).fetchall()
    with full_daemon(stage, plain) as one, full_daemon(stage, pinned) as other:
        region = cell_region(x_from, x_to, y_from, y_to)
        answer = set_pin(other.admin_client, "first", region, [ZOOM])
        assert PINNED <= answer.pin.held.tile_count < 1.01 * PINNED
        insert_seconds(one.client, 20), insert_seconds(other.client, 20)
        rounds = [(insert_seconds(other.client), insert_seconds(one.client)) for _ in range(5)]
    ours = [percentile(round_[0], 50) for round_ in rounds]
    theirs = [percentile(round_[1], 50) for round_ in rounds]
    return Ratio(
        "insert_passing_pinned_over_none",
        "InsertTile that evicts where the 100,000 least recently used are pinned, over none",
        *(1.5, False, quotients(ours, theirs)),
        parts={"with pinned": ours, "without": theirs},
    )


def _evict(client: TileCacheClient, size: int) -> bool:
    """Whether so many bytes were freed."""
    request = EvictTilesRequest(free_bytes=size)
    *_, last = client.admin.EvictTiles(request, timeout=TIMEOUT_S)
    return bool(last.summary.goal_met)
