"""Figures of writing: bulk inserts, recorded accesses, migrations, starts."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from itertools import islice

import psycopg

from tests.benchmarks.measure import Ratio, quotients, seconds, timed
from tests.benchmarks.peers import PsycopgPeer
from tests.benchmarks.stage import Stage
from tests.benchmarks.tiles import ZOOM, Record, X, Y, fill_message, make_records
from tests.daemon_process import DaemonProcess
from tests.waiting import eventually
from tilecache.client import TileCacheClient
from tilecache.identity import tile_uuid_text
from tilecache.v1.tile_metadata_store_pb2 import (
    BulkInsertTilesRequest,
    TileRef,
    TouchTilesRequest,
)

TILES = 200_000
EDGE = 447
BATCH = 2_000
TIMEOUT_S = 600.0


def insert_records(client: TileCacheClient, records: Iterator[Record], batch: int = BATCH) -> int:
    """Sends records in batches; how many were stored."""

    def batches() -> Iterator[BulkInsertTilesRequest]:
        while some := list(islice(records, batch)):
            request = BulkInsertTilesRequest()
            for record in some:
                fill_message(request.tiles.add(), record)
            yield request

    answers = client.store.BulkInsertTiles(batches(), timeout=TIMEOUT_S)
    return sum(answer.inserted_count for answer in answers)


def measure_bulk(stage: Stage) -> list[Ratio]:
    """As many tiles through the daemon, and by binary COPY into the same table."""
    records = list(make_records(EDGE, TILES))
    ours, theirs = [], []
    for _ in range(5):
        copied, inserted = stage.database(), stage.database()
        peer = PsycopgPeer(copied)
        theirs.append(seconds(peer.copy, records, datetime.now(timezone.utc)))
        peer.connection.close()
        with stage.daemon(inserted) as daemon:
            taken, stored = timed(insert_records, daemon.client, iter(records))
            ours.append(taken)
            assert stored == TILES
        assert digest_tiles(copied) == digest_tiles(inserted)
        for dsn in (copied, inserted):
            _drop(stage, dsn)
    return [
        Ratio(
            "bulk_insert_over_copy",
            "200,000 tiles through BulkInsertTiles: rows a second over binary COPY's",
            *(0.6, True, quotients(theirs, ours)),
            parts={"daemon": ours, "binary COPY": theirs},
        )
    ]


def measure_touches(stage: Stage) -> list[Ratio]:
    """WAL of 100,000 accesses to 10,000 tiles, and of one UPDATE for each."""
    ids = [
        tile_uuid_text(ZOOM, X + number % 100, Y + number // 100, "googlemaps", None)
        for number in range(10_000)
    ]
    ratios = []
    for _ in range(3):
        naive, coalesced = stage.database(100), stage.database(100)
        ratios.append(_touch_wal(stage, coalesced, ids) / _naive_wal(naive, ids))
        for dsn in (naive, coalesced):
            _drop(stage, dsn)
    return [
        Ratio(
            "touch_wal_over_naive",
            "WAL bytes of 100,000 accesses to 10,000 tiles, over one UPDATE per access",
            *(0.15, False, ratios),
        )
    ]


def measure_migrations(stage: Stage) -> list[Ratio]:
    """The runner on an empty database and at head, each in a process of its own."""
    first, noop = [], []
    for _ in range(5):
        dsn = stage.empty_database()
        first.append(_migrate(dsn))
        noop.append(_migrate(dsn) * 1_000)
    return [
        Ratio("migrate_first_s", "the runner on an empty database, in seconds", 5.0, False, first),
        Ratio("migrate_noop_ms", "the runner at head, in milliseconds", 100.0, False, noop),
    ]


def measure_start(stage: Stage, database: str) -> list[Ratio]:
    """From the start of the process until health says SERVING."""
    taken = [stage.time_start(database) for _ in range(7)]
    return [
        Ratio(
            "ready_s",
            "start to SERVING, database up and at head, in seconds",
            *(1.0, False, taken),
        )
    ]


@contextmanager
def importing(stage: Stage, daemon: DaemonProcess) -> Iterator[None]:
    """A bulk import that runs in another process until the block ends."""
    command = [sys.executable, "-m", "tests.benchmarks.writing", str(daemon.socket_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"importing\n"
        yield
        assert process.poll() is None, "the import ended too soon"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def import_for_ever(socket_path: str) -> None:
    """Inserts new tiles, batch after batch, as `tilecache import` does."""
    with TileCacheClient(socket_path) as client:
        for zoom in (19, 20, 21, 22):
            records = make_records(900, zoom=zoom)
            insert_records(client, islice(records, 2_000), batch=1_000)
            sys.stdout.write("importing\n")
            sys.stdout.flush()
            insert_records(client, records, batch=1_000)


def digest_tiles(dsn: str, after_id: int = 0) -> object:
    """Number and checksum of the tiles whose row is later than `after_id`."""
    with psycopg.connect(dsn) as connection:
        return connection.execute(
            "SELECT count(*), sum(hashtext(tile_uuid::text || location_hash || file_path"
            " || content_sha256 || disk_bytes || captured_at || freshness_status)) FROM tiles"
            " WHERE id > %s",
            [after_id],
        ).fetchone()


def _drop(stage: Stage, dsn: str) -> None:
    name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
    with psycopg.connect(stage.dsn, autocommit=True) as admin:
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _wal_position(connection: "psycopg.Connection[tuple[object, ...]]") -> int:
    row = connection.execute("SELECT pg_current_wal_lsn() - '0/0'").fetchone()
    assert row is not None
    return int(str(row[0]))


def _naive_wal(dsn: str, ids: list[str]) -> int:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CHECKPOINT")
        before = _wal_position(connection)
        for _ in range(10):
            for tile_uuid in ids:
                connection.execute(
                    "UPDATE tiles SET accessed_at = clock_timestamp() WHERE tile_uuid = %s",
                    (tile_uuid,),
                )
        return _wal_position(connection) - before


def _touch_wal(stage: Stage, dsn: str, ids: list[str]) -> int:
    with stage.daemon(dsn) as daemon, psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CHECKPOINT")
        before = _wal_position(connection)
        for _ in range(10):
            for start in range(0, len(ids), 1_000):
                refs = [TileRef(tile_uuid=tile_uuid) for tile_uuid in ids[start : start + 1_000]]
                daemon.client.store.TouchTiles(TouchTilesRequest(tiles=refs), timeout=TIMEOUT_S)
        eventually(
            lambda: (
                connection.execute(
                    "SELECT count(*) = %s FROM tiles WHERE accessed_at IS NOT NULL", (len(ids),)
                ).fetchone()
                == (True,)
            )
        )
        return _wal_position(connection) - before


def _migrate(dsn: str) -> float:
    program = (
        "import sys, time; from tilecache_daemon.config import Config;"
        "from tilecache_daemon.schema.migrator import apply_migrations;"
        "config = Config(dsn=sys.argv[1]);"
        "start = time.perf_counter(); apply_migrations(config); print(time.perf_counter() - start)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, dsn], check=True, capture_output=True, text=True
    )
    return float(done.stdout)


if __name__ == "__main__":
    import_for_ever(sys.argv[1])
