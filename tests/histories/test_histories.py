"""Random concurrent histories leave a database in which every promise holds.

`TILECACHE_SOAK_S` makes as many histories as fit into so many seconds, `TILECACHE_SEED` others.
"""

import os
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.admin import read_usage
from tests.daemon_process import DaemonProcess
from tests.histories.history import History, Owned, Stored
from tests.tiles import tile_uuid
from tests.waiting import eventually
from tilecache.errors import CallError
from tilecache.mercator import BoundingBox
from tilecache_daemon.freshness_policy import (
    FreshnessAction,
    FreshnessPolicy,
    FreshnessRule,
    Sector,
    SectorClassification,
)

SOAK_S = float(os.environ.get("TILECACHE_SOAK_S", "0"))
SEED = int(os.environ.get("TILECACHE_SEED", "1"))
HISTORIES = 3

# What became of each file, in order: a tile named it, or its removal was confirmed.
RECORD_FILES = """
    CREATE TABLE file_events (id bigserial PRIMARY KEY, file_path text, named boolean);
    CREATE FUNCTION record_named() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO file_events (file_path, named) VALUES (NEW.file_path, true);
        RETURN NULL;
    END $$;
    CREATE FUNCTION record_removed() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO file_events (file_path, named) VALUES (OLD.file_path, false);
        RETURN NULL;
    END $$;
    CREATE TRIGGER named AFTER INSERT OR UPDATE OF file_path ON tiles
        FOR EACH ROW EXECUTE FUNCTION record_named();
    CREATE TRIGGER removed AFTER DELETE ON tile_evictions
        FOR EACH ROW EXECUTE FUNCTION record_removed();
"""
LOST_FILES = """
    SELECT file_path
    FROM (SELECT DISTINCT ON (file_path) file_path, named FROM file_events
          ORDER BY file_path, id DESC) AS last
    WHERE named
      AND NOT EXISTS (SELECT FROM tiles t WHERE t.file_path = last.file_path)
      AND NOT EXISTS (SELECT FROM tile_evictions e WHERE e.file_path = last.file_path)
"""
COUNTED = """
    SELECT count(*), coalesce(sum(disk_bytes), 0),
           count(*) FILTER (WHERE source = 'onboard_ingest' AND uploaded_at IS NULL)
    FROM tiles
"""


@pytest.fixture(params=[0, 12_000], ids=["without a ceiling", "under a ceiling"])
def daemon(
    request: pytest.FixtureRequest, database: str, short_directory: Path
) -> Iterator[DaemonProcess]:
    """A daemon that writes every access, and soon; under a ceiling it evicts on insert."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(RECORD_FILES)
    with DaemonProcess(
        short_directory,
        dsn=database,
        access_flush_interval_s=0.1,
        access_recent_s=0,
        max_used_bytes=request.param,
        evict_on_insert=bool(request.param),
    ) as process:
        yield process


def test_every_promise_holds_after_each_random_history(
    daemon: DaemonProcess, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    until, seed = time.monotonic() + SOAK_S / 2, SEED
    while seed < SEED + HISTORIES or time.monotonic() < until:
        history = History(daemon, database, seed)
        try:
            history.run()
            check(history, daemon, database)
        except (AssertionError, CallError) as error:
            raise AssertionError(f"seed {seed}: {error}; {daemon.log[-5_000:]}") from error
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(
                "TRUNCATE tiles, tile_evictions, sector_classifications, file_events"
            )
        seed += 1
    with capsys.disabled():
        print(f" {seed - SEED} histories", end="")


def check(history: History, daemon: DaemonProcess, database: str) -> None:
    """Nothing is under way any more."""
    with psycopg.connect(database, autocommit=True) as connection:
        for owned in (each for owner in history.owned for each in owner):
            assert stored(connection, owned) in owned.possible, owned
        assert connection.execute(LOST_FILES).fetchall() == []
        assert (
            connection.execute(
                "SELECT file_path FROM tiles JOIN tile_evictions USING (file_path)"
            ).fetchall()
            == []
        )
        usage = read_usage(daemon.admin_client)
        assert connection.execute(COUNTED).fetchone() == (
            usage.total.tile_count,
            usage.total.used_bytes,
            usage.pending_upload.tile_count,
        )
        # A daemon that was killed while it relabelled does so again when it starts.
        eventually(lambda: not wrong_labels(connection))


def stored(connection: "psycopg.Connection[Any]", owned: Owned) -> Stored | None:
    row = connection.execute(
        "SELECT content_sha256, captured_at, uploaded_at IS NOT NULL FROM tiles"
        " WHERE tile_uuid = %s",
        [tile_uuid(owned.key)],
    ).fetchone()
    return row and Stored(row[0], row[1].astimezone(timezone.utc), uploaded=row[2])


def wrong_labels(connection: "psycopg.Connection[Any]") -> list[Any]:
    """Tiles whose label is not what the rules say."""
    sectors = tuple(
        Sector(row[0], SectorClassification(row[1]), BoundingBox(*row[2:6]), row[6])
        for row in connection.execute(
            "SELECT name, classification, south, west, north, east, created_at"
            " FROM sector_classifications"
        )
    )
    rules = tuple(
        FreshnessRule(SectorClassification(row[0]), row[1], FreshnessAction(row[2]))
        for row in connection.execute(
            "SELECT classification, max_age_months, action FROM tile_freshness_rules"
        )
    )
    policy, now = FreshnessPolicy(sectors, rules), datetime.now(timezone.utc)
    return [
        row
        for row in connection.execute(
            "SELECT x, y, freshness_status, latitude, longitude, captured_at FROM tiles"
        )
        if policy.evaluate(row[3], row[4], row[5], now).label.value != row[2]
    ]
