"""Figures of what may not grow: inserts under a ceiling, purges, coverage."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import psycopg

from tests.admin import ACTIVE_CONFLICT, set_sector
from tests.benchmarks.measure import Ratio, alternate, percentile, quotients, seconds, timed
from tests.benchmarks.stage import Stage
from tests.benchmarks.tiles import ZOOM, X, Y
from tests.daemon_process import DaemonProcess
from tests.tiles import cell_region, insert, tile, tile_key
from tilecache.client import TileCacheClient
from tilecache.v1.tile_cache_admin_pb2 import DeleteTilesRequest
from tilecache.v1.tile_identity_pb2 import TILE_SOURCE_GOOGLEMAPS
from tilecache.v1.tile_metadata_store_pb2 import DescribeCoverageRequest

TILES = 600_000
EDGE = 775
PENDING = 100_000
INSERTS = 200
COVERED_EDGE = 2_048
TIMEOUT_S = 600.0

_rows = count(1)


def measure_costs(stage: Stage) -> list[Ratio]:
    """All of them."""
    return [
        _insert_after_relabelling(stage),
        _insert_with_pending(stage),
        _purge_of_one_capture_time(stage),
        _coverage(stage),
    ]


def _insert_after_relabelling(stage: Stage) -> Ratio:
    database = stage.database(EDGE, TILES)
    with stage.daemon(database, max_used_bytes=10**15) as daemon:
        before = insert_seconds(daemon.client)
        box = (-85.0, -180.0, 85.0, 180.0)
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute("UPDATE tiles SET captured_at = now() - interval '1 year'")
        assert set_sector(daemon.admin_client, "all", ACTIVE_CONFLICT, box).relabelled_count > 0
        time.sleep(10)
        after = insert_seconds(daemon.client)
    return Ratio(
        "insert_after_relabelling_over_before",
        "InsertTile under a ceiling 10 s after 600,000 tiles were relabelled, over before",
        *(1.5, False, [percentile(after, 50) / percentile(before, 50)]),
        parts={"after": after, "before": before},
    )


def _insert_with_pending(stage: Stage) -> Ratio:
    plain, pending = stage.database(EDGE, TILES), stage.database(EDGE, TILES)
    with psycopg.connect(pending, autocommit=True) as connection:
        connection.execute(
            "UPDATE tiles SET source = 'onboard_ingest' WHERE id IN"
            " (SELECT id FROM tiles ORDER BY access_order, id LIMIT %s)",
            [PENDING],
        )
        connection.execute("VACUUM ANALYZE tiles")
    with full_daemon(stage, plain) as one, full_daemon(stage, pending) as other:
        insert_seconds(one.client, 20), insert_seconds(other.client, 20)
        rounds = [(insert_seconds(other.client), insert_seconds(one.client)) for _ in range(5)]
    ours = [percentile(round_[0], 50) for round_ in rounds]
    theirs = [percentile(round_[1], 50) for round_ in rounds]
    return Ratio(
        "insert_passing_pending_over_none",
        "InsertTile that evicts where the 100,000 least recently used wait for upload, over none",
        *(1.5, False, quotients(ours, theirs)),
        parts={"with pending": ours, "without": theirs},
    )


def _purge_of_one_capture_time(stage: Stage) -> Ratio:
    taken: dict[str, list[float]] = {"one time": [], "distinct times": []}
    for name, times in taken.items():
        database = stage.database(EDGE, TILES)
        if name == "distinct times":
            with psycopg.connect(database, autocommit=True) as connection:
                connection.execute(
                    "UPDATE tiles SET captured_at = captured_at - id * interval '1 second'"
                )
                connection.execute("VACUUM ANALYZE tiles")
        with stage.daemon(database) as daemon:
            spent, went = timed(delete_all, daemon.admin_client)
            times.append(spent)
            assert went == TILES
    return Ratio(
        "purge_one_time_over_distinct",
        "purging 600,000 tiles of one capture time, over as many of distinct ones",
        *(1.5, False, quotients(*taken.values())),
        parts=taken,
    )


def _coverage(stage: Stage) -> Ratio:
    database = stage.database(1_000)
    region = cell_region(X, X + COVERED_EDGE - 1, Y, Y + COVERED_EDGE - 1)
    request = DescribeCoverageRequest(zoom=ZOOM, region=region)
    with (
        stage.daemon(database) as daemon,
        psycopg.connect(database, autocommit=True, prepare_threshold=0) as peer,
    ):

        def describe() -> int:
            answers = list(daemon.client.store.DescribeCoverage(request, timeout=TIMEOUT_S))
            return int(answers[0].summary.covered_count)

        def select() -> int:
            rows = peer.execute(
                "SELECT x, y, freshness_status FROM tiles WHERE zoom = %s AND x BETWEEN %s AND %s"
                " AND y BETWEEN %s AND %s",
                [ZOOM, X, X + COVERED_EDGE - 1, Y, Y + COVERED_EDGE - 1],
                binary=True,
            ).fetchall()
            return len(rows)

        assert describe() == select() == 1_000_000
        ours, theirs = alternate(3, describe, select)
    return Ratio(
        "coverage_over_select",
        "coverage of 4,194,304 cells with 1,000,000 tiles, over one SELECT of cells and labels",
        *(3.0, False, quotients(ours, theirs)),
        parts={"daemon": ours, "psycopg": theirs},
    )


def delete_all(client: TileCacheClient) -> int:
    """Purges a source; how many went."""
    request = DeleteTilesRequest(sources=[TILE_SOURCE_GOOGLEMAPS])
    *_, last = client.admin.DeleteTiles(request, timeout=TIMEOUT_S)
    return int(last.summary.deleted_count)


@contextmanager
def full_daemon(stage: Stage, database: str) -> Iterator[DaemonProcess]:
    """A daemon whose ceiling is reached, and whose inserts evict."""
    with psycopg.connect(database) as connection:
        ((used,),) = connection.execute("SELECT sum(used_bytes)::bigint FROM tile_usage").fetchall()
    with stage.daemon(database, max_used_bytes=used, evict_on_insert=True) as daemon:
        yield daemon


def insert_seconds(client: TileCacheClient, number: int = INSERTS) -> list[float]:
    """The times of inserts of new tiles."""
    return [
        seconds(insert, client, tile(tile_key(12, next(_rows) % 4096, next(_rows) % 4096)))
        for _ in range(number)
    ]
