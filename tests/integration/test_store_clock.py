"""A daemon on a machine whose clock is behind what its database has seen."""

import re
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.admin import STABLE_REAR, evict, set_sector
from tests.daemon_process import DaemonProcess, run_tilecache
from tests.tiles import Block, bulk_insert, by_key, insert, store_row, tile, tile_uuid
from tests.waiting import eventually
from tilecache.mercator import cell_centre
from tilecache.v1.tile_metadata_store_pb2 import (
    INSERT_OUTCOME_DOWNGRADED,
    INSERT_OUTCOME_INSERTED,
    GetServerInfoRequest,
    TouchTilesRequest,
)
from tilecache_daemon.freshness_policy import add_months

NOW = datetime.now(timezone.utc)
SEEN = NOW + timedelta(days=400)


@pytest.fixture
def sql(database: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def late_daemon(
    database: str, sql: psycopg.Connection[Any], short_directory: Path
) -> Iterator[DaemonProcess]:
    """A daemon whose database has an access more than a year in the future."""
    store_row(sql, Block().key(), accessed_at=SEEN)
    with DaemonProcess(short_directory, dsn=database, access_flush_interval_s=0.05) as process:
        yield process


def add_rear_sector(sql: psycopg.Connection[Any], latitude: float, longitude: float) -> None:
    sql.execute(
        """INSERT INTO sector_classifications (name, classification, south, west, north, east)
           VALUES ('rear', 'stable_rear', %s, %s, %s, %s)""",
        [latitude, longitude, latitude, longitude],
    )


def test_a_clock_behind_the_database_is_reported_as_not_trusted(
    late_daemon: DaemonProcess,
) -> None:
    clock = late_daemon.client.store.GetServerInfo(GetServerInfoRequest(), timeout=60).clock
    assert not clock.trusted
    assert f"{SEEN:%Y-%m-%d}" in clock.reason
    assert clock.time.ToDatetime(timezone.utc) >= SEEN
    status = run_tilecache("status", "--socket", late_daemon.socket_path)
    assert "NOT trusted" in status.stdout


def test_no_tile_is_labelled_fresh_by_an_untrusted_clock(
    late_daemon: DaemonProcess, sql: psycopg.Connection[Any], block: Block
) -> None:
    inside, outside = block.key(0), block.key(50)
    add_rear_sector(sql, *cell_centre(inside.zoom, inside.x, inside.y))
    captured_at = SEEN - timedelta(days=1)
    assert insert(late_daemon.client, tile(inside, captured_at=captured_at)).outcome == (
        INSERT_OUTCOME_DOWNGRADED
    )
    # Outside all sectors the clock does not matter.
    assert insert(late_daemon.client, tile(outside, captured_at=captured_at)).outcome == (
        INSERT_OUTCOME_INSERTED
    )


def test_no_label_becomes_fresh_by_an_untrusted_clock(
    late_daemon: DaemonProcess, sql: psycopg.Connection[Any], block: Block
) -> None:
    inside, outside = block.key(0), block.key(50)
    add_rear_sector(sql, *cell_centre(inside.zoom, inside.x, inside.y))
    for key in (inside, outside):
        store_row(sql, key, captured_at=SEEN - timedelta(days=1), freshness_status="downgraded")
    late_daemon.stop()
    late_daemon.start()
    words = "SELECT freshness_status FROM tiles WHERE tile_uuid = %s"
    eventually(lambda: sql.execute(words, [tile_uuid(outside)]).fetchone() == ("fresh",))
    assert sql.execute(words, [tile_uuid(inside)]).fetchone() == ("downgraded",)


def test_a_tile_too_old_at_the_earliest_possible_time_is_refused(
    late_daemon: DaemonProcess, sql: psycopg.Connection[Any], block: Block
) -> None:
    key = block.key()
    add_rear_sector(sql, *cell_centre(key.zoom, key.x, key.y))
    sql.execute("UPDATE tile_freshness_rules SET action = 'reject'")
    captured_at = add_months(SEEN, -12) - timedelta(days=1)
    assert captured_at > NOW
    (answer,) = bulk_insert(late_daemon.client, [tile(key, captured_at=captured_at)])
    assert [refused.reason for refused in answer.refused] == ["TILE_TOO_OLD"]


def test_the_order_of_use_does_not_depend_on_the_time_of_day(
    late_daemon: DaemonProcess, sql: psycopg.Connection[Any], block: Block
) -> None:
    keys = list(block.keys(5))
    bulk_insert(late_daemon.client, [tile(key) for key in keys])
    for key in reversed(keys):
        request = TouchTilesRequest(tiles=[by_key(key)])
        late_daemon.client.store.TouchTiles(request, timeout=60)
    used = [tile_uuid(key) for key in reversed(keys)]
    query = """SELECT tile_uuid::text FROM tiles WHERE accessed_at IS NOT NULL
               AND tile_uuid = ANY(%s::uuid[]) ORDER BY access_order"""
    eventually(lambda: len(sql.execute(query, [used]).fetchall()) == len(used))
    assert [text for (text,) in sql.execute(query, [used]).fetchall()] == used


def test_the_documented_statements_end_distrust_of_a_clock_that_is_right(
    late_daemon: DaemonProcess, sql: psycopg.Connection[Any], block: Block
) -> None:
    store_row(sql, block.key(), created_at=SEEN, uploaded_at=SEEN)
    store_row(sql, block.key(1), accessed_at=None, uploaded_at=None)
    set_sector(late_daemon.admin_client, "s", STABLE_REAR, (0.0, 0.0, 1.0, 1.0))
    evict(late_daemon.admin_client, free_bytes=1)
    assert late_daemon.stop() == 0
    text = Path(__file__).parents[2].joinpath("docs", "reliability.md").read_text()
    (statements,) = re.findall(r"```sql\n(.*?)```", text, re.DOTALL)

    sql.execute(statements)
    late_daemon.start()

    assert late_daemon.client.store.GetServerInfo(GetServerInfoRequest(), timeout=60).clock.trusted
    ((unused,),) = sql.execute(
        "SELECT count(*) FROM tiles WHERE accessed_at IS NULL AND uploaded_at IS NULL"
    ).fetchall()
    assert unused == 1


def test_times_that_are_no_dates_are_passed_over(
    database: str, sql: psycopg.Connection[Any], short_directory: Path, block: Block
) -> None:
    sql.execute("ALTER TABLE tiles DISABLE TRIGGER USER")
    for index, moment in enumerate(("infinity", "-infinity", "0044-03-15 BC")):
        store_row(sql, block.key(index), accessed_at=moment, created_at=moment)
    sql.execute("ALTER TABLE tiles ENABLE TRIGGER USER")

    with DaemonProcess(short_directory, dsn=database) as daemon:
        info = daemon.client.store.GetServerInfo(GetServerInfoRequest(), timeout=60)
        assert info.clock.trusted
