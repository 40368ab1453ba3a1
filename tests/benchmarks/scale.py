"""`make bench-scale`: what grows with the number of stored tiles.

Prints a table for each figure and writes build/bench-scale.json. The number of tiles may be
given: `python -m tests.benchmarks.scale 1000000`. The figures are taken at a tenth of it, at
three tenths and at all, and the file is written after each.
"""

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any, Final

import psycopg
from psycopg.conninfo import make_conninfo

from tests.admin import confirm, evict, read_usage
from tests.benchmarks.bench import BUILD
from tests.benchmarks.measure import alternate, quotients, seconds, timed
from tests.benchmarks.peers import PsycopgPeer
from tests.benchmarks.reading import check_same, query_box, tiles_of
from tests.benchmarks.scale_report import Figure, show, write
from tests.benchmarks.stage import Stage
from tests.benchmarks.tiles import ZOOM, X, Y, make_records
from tests.benchmarks.writing import TIMEOUT_S, digest_tiles, insert_records
from tests.filling import without_upkeep
from tests.tiles import cell_region
from tests.waiting import eventually
from tilecache.client import TileCacheClient
from tilecache.identity import SOURCE_TEXTS
from tilecache.v1.tile_cache_admin_pb2 import GetStorageUsageResponse
from tilecache.v1.tile_metadata_store_pb2 import (
    CoverageSummary,
    DescribeCoverageRequest,
    DescribeCoverageResponse,
    FreshnessLabel,
)
from tilecache_daemon.config import Config
from tilecache_daemon.schema.migrator import apply_migrations

TILES: Final = 10_000_000
LEAST_TILES: Final = 200_000
SHARES: Final = (0.1, 0.3, 1.0)
ROUNDS: Final = 3
INSERTED: Final = 200_000
EVICTED: Final = 10_000
"""Tiles of a round; fewer in a small trial."""
SERVING: Final = "serving"
RELABELLED: Final = "labels_up_to_date"
"""What the daemon logs, with a time."""
BOX: Final = 5
CALLS: Final = 50
CONFIRMED: Final = 1_000
EDGE: Final = 2_048
"""Cells in a row of tiles, and of the region whose coverage is asked for: 4,194,304 cells."""
DISK_BYTES_PER_TILE: Final = 1_600
"""Table, indexes and a copy of both, with room to spare; the log is extra."""
LOG_BYTES: Final = 6 * 1024**3
FILL: Final = """
    INSERT INTO tiles (
        zoom, x, y, source, latitude, longitude, tile_size_meters, tile_size_pixels, file_path,
        captured_at, created_at, tile_uuid, location_hash, content_sha256, disk_bytes
    )
    SELECT %(zoom)s, x, y, 'googlemaps', 45.0, 31.5 + n %% 2048 * 0.001, 108.0, 256,
           %(zoom)s || '/' || x || '/' || y || '.jpg', now() - interval '30 days', now(),
           md5('tile ' || n)::uuid, md5('cell ' || n)::uuid, encode(sha256(n::text::bytea), 'hex'),
           10000 + n %% 5000
    FROM generate_series(%(first)s::int, %(last)s::int) AS n,
         LATERAL (SELECT %(x)s + n %% %(edge)s AS x, %(y)s + n / %(edge)s AS y) AS cell
"""

COVERED: Final = "zoom = %s AND x BETWEEN %s AND %s AND y BETWEEN %s AND %s"
COVERED_CELLS: Final = (ZOOM, X, X + EDGE - 1, Y, Y + EDGE - 1)

LEAST_RECENTLY_USED: Final = "SELECT id FROM tiles ORDER BY access_order, id LIMIT %s"


class Scale:
    """The database that grows, and the number of the next tile."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._next = 0
        self._began = time.monotonic()
        apply_migrations(Config(dsn=stage.dsn))

    def measure(self, tiles: int) -> list[Figure]:
        """All figures at so many tiles."""
        self._report(f"storing {tiles:,} tiles")
        self._fill(tiles)
        copy = self._copy_database()
        self._report(f"measuring at {tiles:,} tiles")
        restart = [self._stage.time_start(self._stage.dsn) for _ in range(ROUNDS)]
        figures = [Figure("restart", tiles, restart)]
        with self._stage.daemon(self._stage.dsn) as daemon:
            # Everything below would be measured beside this.
            eventually(lambda: RELABELLED in daemon.log, TIMEOUT_S)
            relabelling = _logged_at(daemon.log, RELABELLED) - _logged_at(daemon.log, SERVING)
            peer, copied = PsycopgPeer(self._stage.dsn), PsycopgPeer(copy)
            y = Y + tiles // EDGE - BOX
            rows = peer.query_box(ZOOM, X, y, BOX)
            tiles_read = tiles_of(query_box(daemon.client, X, y, BOX))
            assert check_same(tiles_read, rows) == BOX * BOX
            figures += [
                Figure("labels_after_start", tiles, [relabelling.total_seconds()]),
                _usage(tiles, daemon.admin_client, peer),
                _coverage(tiles, daemon.client, peer),
                self._bulk(tiles, daemon.client, peer, copied),
                _evict(tiles, daemon.admin_client, peer, copied),
            ]
            _check_usage(read_usage(daemon.admin_client), _recount(peer))
            peer.connection.close()
            copied.connection.close()
        figures.append(self._restart_after_kill(tiles))
        with psycopg.connect(self._stage.dsn, autocommit=True) as admin:
            admin.execute("DROP DATABASE copy")
        return figures

    def _fill(self, tiles: int) -> None:
        with psycopg.connect(self._stage.dsn, autocommit=True) as sql:
            ((stored,),) = sql.execute("SELECT count(*) FROM tiles").fetchall()
            with without_upkeep(sql):
                first, self._next = self._next, self._next + tiles - stored
                square = {"zoom": ZOOM, "x": X, "y": Y, "edge": EDGE}
                sql.execute(FILL, square | {"first": first, "last": self._next - 1})
            sql.execute("VACUUM ANALYZE tiles")

    def _copy_database(self) -> str:
        """A copy with the same files, so that both sides store into the same pages."""
        admin_dsn = make_conninfo(self._stage.dsn, dbname="postgres")
        with psycopg.connect(admin_dsn, autocommit=True) as admin:
            name = psycopg.conninfo.conninfo_to_dict(self._stage.dsn)["dbname"]
            admin.execute(f"CREATE DATABASE copy TEMPLATE {name} STRATEGY file_copy")
        return make_conninfo(self._stage.dsn, dbname="copy")

    def _bulk(
        self, tiles: int, client: TileCacheClient, peer: PsycopgPeer, copied: PsycopgPeer
    ) -> Figure:
        ours, theirs = [], []
        number = min(INSERTED, tiles // 6)
        for _ in range(ROUNDS):
            records = list(make_records(EDGE, number, first=self._next))
            self._next += number
            before = [_last_id(peer), _last_id(copied)]
            theirs.append(seconds(copied.copy, records, datetime.now(timezone.utc)))
            taken, stored = timed(insert_records, client, iter(records))
            ours.append(taken)
            assert stored == number
            one, other = (
                digest_tiles(side.connection.info.dsn, after_id)
                for side, after_id in zip((peer, copied), before, strict=True)
            )
            assert one == other
        ratio = median(quotients(theirs, ours))
        return Figure("bulk", tiles, ours, theirs, ratio, f"{number:,} tiles", number)

    def _restart_after_kill(self, tiles: int) -> Figure:
        stage = self._stage
        with psycopg.connect(stage.dsn) as sql:
            ((stored, log_bytes),) = sql.execute(
                "SELECT (SELECT count(*) FROM tiles),"
                " pg_current_wal_lsn() - redo_lsn FROM pg_control_checkpoint()"
            ).fetchall()
        assert stage.server.server_pid is not None
        os.kill(stage.server.server_pid, signal.SIGKILL)
        eventually(lambda: not stage.server.is_running())
        stage.server.stop()
        taken = stage.time_start(None)
        stage.dsn = stage.server.start()
        with psycopg.connect(stage.dsn) as sql:
            assert sql.execute("SELECT count(*) FROM tiles").fetchall() == [(stored,)]
        note = f"{int(log_bytes) / 1024**2:,.0f} MiB of log"
        return Figure("restart_after_kill", tiles, [taken], note=note)

    def _report(self, text: str) -> None:
        sys.stderr.write(f"{time.monotonic() - self._began:5.0f} s: {text}\n")


def _logged_at(log: str, kind: str) -> datetime:
    entries = map(json.loads, log.splitlines())
    logged = next(entry["timestamp"] for entry in entries if entry["kind"] == kind)
    return datetime.fromisoformat(logged.replace("Z", "+00:00"))


def _usage(tiles: int, admin_client: TileCacheClient, peer: PsycopgPeer) -> Figure:
    answer, counted = read_usage(admin_client), _recount(peer)
    assert answer.total.tile_count == tiles
    _check_usage(answer, counted)
    theirs = [seconds(_recount, peer) for _ in range(ROUNDS)]
    # Not in turns: a call of milliseconds would be slow after a long pause.
    ours = [seconds(read_usage, admin_client) for _ in range(CALLS)]
    return Figure("usage", tiles, ours, theirs, median(ours) / median(theirs))


def _recount(peer: PsycopgPeer) -> list[tuple[Any, ...]]:
    return peer.connection.execute(
        "SELECT zoom, source, freshness_status, count(*), sum(disk_bytes)::bigint"
        " FROM tiles GROUP BY zoom, source, freshness_status"
    ).fetchall()


def _check_usage(answer: GetStorageUsageResponse, counted: Sequence[tuple[Any, ...]]) -> None:
    ((zoom, source, label, count, used_bytes),) = counted
    (zooms,), (sources,), (labels,) = answer.zooms, answer.sources, answer.labels
    assert (zooms.zoom, SOURCE_TEXTS[sources.source]) == (zoom, source)
    assert _label_text(labels.label) == label
    for usage in (answer.total, zooms.usage, sources.usage, labels.usage):
        assert (usage.tile_count, usage.used_bytes) == (count, used_bytes)


def _coverage(tiles: int, client: TileCacheClient, peer: PsycopgPeer) -> Figure:
    region = cell_region(X, X + EDGE - 1, Y, Y + EDGE - 1)
    request = DescribeCoverageRequest(zoom=ZOOM, region=region)

    def describe() -> list[DescribeCoverageResponse]:
        return list(client.store.DescribeCoverage(request, timeout=TIMEOUT_S))

    def select() -> int:
        rows = peer.connection.cursor().stream(
            f"SELECT x, y, freshness_status FROM tiles WHERE {COVERED}",
            COVERED_CELLS,
            binary=True,
            size=10_000,
        )
        return sum(1 for _ in rows)

    first, *_ = answers = describe()
    missing = sum(
        (cells.x_to - cells.x_from + 1) * (cells.y_to - cells.y_from + 1)
        for answer in answers
        for cells in answer.missing
    )
    _check_coverage(first.summary, missing, peer)
    assert select() == first.summary.covered_count
    ours, theirs = alternate(ROUNDS, describe, select)
    note = f"{first.summary.covered_count:,} cells covered"
    return Figure("coverage", tiles, ours, theirs, median(quotients(ours, theirs)), note)


def _check_coverage(summary: CoverageSummary, missing: int, peer: PsycopgPeer) -> None:
    counted = peer.connection.execute(
        f"SELECT freshness_status, count(DISTINCT (x, y)) FROM tiles WHERE {COVERED} GROUP BY 1",
        COVERED_CELLS,
    ).fetchall()
    assert {_label_text(each.label): each.count for each in summary.labels} == dict(counted)
    assert summary.missing_count == missing == summary.cell_count - summary.covered_count
    assert summary.cell_count == EDGE * EDGE


def _evict(
    tiles: int, admin_client: TileCacheClient, peer: PsycopgPeer, copied: PsycopgPeer
) -> Figure:
    ours, theirs = [], []
    number = min(EVICTED, tiles // 10)
    for _ in range(ROUNDS):
        ((need,),) = peer.connection.execute(
            f"SELECT sum(disk_bytes)::bigint FROM tiles WHERE id IN ({LEAST_RECENTLY_USED})",
            [number],
        ).fetchall()
        spent, deleted = timed(
            lambda: copied.connection.execute(
                f"DELETE FROM tiles WHERE id IN ({LEAST_RECENTLY_USED}) RETURNING tile_uuid::text",
                [number],
            ).fetchall()
        )
        theirs.append(spent)
        taken, evicted = timed(lambda need=need: evict(admin_client, free_bytes=need))
        ours.append(taken)
        assert {tile.tile_uuid for tile in evicted.tiles} == {row[0] for row in deleted}
        assert evicted.summary.freed_bytes == need
        # The usage counts the listed files; their number is not what is measured.
        for some in range(0, number, CONFIRMED):
            ids = [tile.eviction_id for tile in evicted.tiles[some : some + CONFIRMED]]
            assert all(confirm(admin_client, ids))
    ratio = median(quotients(ours, theirs))
    return Figure("evict", tiles, ours, theirs, ratio, f"{number:,} tiles", number)


def _last_id(peer: PsycopgPeer) -> int:
    ((last,),) = peer.connection.execute("SELECT max(id) FROM tiles").fetchall()
    return int(last)


def _label_text(label: Any) -> str:
    return FreshnessLabel.Name(label).removeprefix("FRESHNESS_LABEL_").lower()


def main(arguments: list[str]) -> int:
    """Measures at three numbers of tiles; 1 if a figure misses its bound."""
    tiles = int(arguments[0]) if arguments else TILES
    if tiles < LEAST_TILES:
        sys.exit(f"at least {LEAST_TILES:,} tiles are needed")
    sizes = [int(tiles * share) for share in SHARES]
    directory = Path(tempfile.mkdtemp(prefix="tilecache-bench-", dir="/var/tmp"))
    directory.chmod(0o755)
    try:
        need = tiles * DISK_BYTES_PER_TILE + LOG_BYTES
        if (free := shutil.disk_usage(directory).free) < need:
            sys.exit(f"{tiles:,} tiles take {need:,} bytes in /var/tmp, where {free:,} are free")
        stage = Stage(directory)
        try:
            scale = Scale(stage)
            figures: list[Figure] = []
            for size in sizes:
                figures += scale.measure(size)
                write(figures, BUILD / "bench-scale.json")
        finally:
            stage.close()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    show(figures)
    return 0 if all(figure.reached for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
